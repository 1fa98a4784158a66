//! Compares the tables of docs/wire.md with the code.

use super::*;

#[test]
fn numbers_come_back_as_the_reason_they_were() {
    for number in 0..=u16::MAX {
        assert_eq!(Refusal::from_wire(number).to_wire(), number);
        assert_eq!(ResetCode::from_wire(number).to_wire(), number);
    }
    for number in 0..=u8::MAX {
        assert_eq!(TlsReason::from_alert(number).alert(), number);
    }
    for &reason in TlsReason::ALL {
        let heard = TlsReason::from_alert(reason.alert());
        let coarser = (TlsReason::CertificateNotYetValid, TlsReason::CertificateExpired);
        assert!(heard == reason || (reason, heard) == coarser, "{reason:?} is heard as {heard:?}");
    }
}

/// Where the repository's documents are available (not in a packaged crate), their tables name
/// every reason with its number.
#[test]
fn the_specification_lists_every_reason() {
    let Some(text) = specification() else {
        println!("docs/wire.md is not beside this crate");
        return;
    };
    let row = |number: u32, code: &str| format!("| {number} | `{code}` |");
    for reason in Refusal::ALL {
        let row = row(reason.to_wire().into(), reason.reason().code());
        assert!(text.contains(&row), "docs/wire.md lacks {row}");
    }
    for code in ResetCode::ALL {
        let row = row(code.to_wire().into(), code.reason().code());
        assert!(text.contains(&row), "docs/wire.md lacks {row}");
    }
    for &reason in TlsReason::ALL {
        let row = row(reason.alert().into(), reason.reason().code());
        assert!(text.contains(&row), "docs/wire.md lacks {row}");
    }
}

fn specification() -> Option<String> {
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = manifest.join("../docs/wire.md");
    std::fs::read_to_string(beside).ok()
}
