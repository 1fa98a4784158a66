//! Compares the tables of docs/wire.md with the code.

use super::*;

#[test]
fn codes_are_stable_distinct_and_snake_case() {
    let mut codes: Vec<&str> = Vec::new();
    codes.extend(Refusal::ALL.iter().map(|r| r.as_code()));
    codes.extend(ResetCode::ALL.iter().map(|r| r.as_code()));
    codes.extend(TlsReason::ALL.iter().map(|r| r.as_code()));
    for code in &codes {
        assert!(code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code}");
    }
    let distinct: std::collections::BTreeSet<_> = codes.iter().collect();
    assert_eq!(distinct.len(), codes.len());
}

#[test]
fn numbers_come_back_as_the_reason_they_were() {
    for number in 0..=u16::MAX {
        assert_eq!(Refusal::from_wire(number).to_wire(), number);
        assert_eq!(ResetCode::from_wire(number).to_wire(), number);
    }
    for number in 0..=u8::MAX {
        assert_eq!(TlsReason::from_alert(number).alert(), number);
    }
    for reason in TlsReason::ALL {
        let heard = TlsReason::from_alert(reason.alert());
        let coarser = (TlsReason::CertificateNotYetValid, TlsReason::CertificateExpired);
        assert!(heard == reason || (reason, heard) == coarser, "{reason:?} is heard as {heard:?}");
    }
}

#[test]
fn every_reason_is_explained_in_a_sentence() {
    let mut sentences: Vec<String> = Vec::new();
    sentences.extend(Refusal::ALL.iter().map(ToString::to_string));
    sentences.extend(ResetCode::ALL.iter().map(ToString::to_string));
    sentences.extend(TlsReason::ALL.iter().map(ToString::to_string));
    for sentence in sentences {
        assert!(sentence.len() > 25 && !sentence.ends_with('.'), "{sentence}");
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
        let row = row(reason.to_wire().into(), reason.as_code());
        assert!(text.contains(&row), "docs/wire.md lacks {row}");
    }
    for code in ResetCode::ALL {
        let row = row(code.to_wire().into(), code.as_code());
        assert!(text.contains(&row), "docs/wire.md lacks {row}");
    }
    for reason in TlsReason::ALL {
        let row = row(reason.alert().into(), reason.as_code());
        assert!(text.contains(&row), "docs/wire.md lacks {row}");
    }
}

fn specification() -> Option<String> {
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = manifest.join("../docs/wire.md");
    std::fs::read_to_string(beside).ok()
}
