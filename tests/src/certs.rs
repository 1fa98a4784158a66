//! Certificates that no honest agent would have, made with `openssl`: an independent
//! implementation, in both senses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// For some days around now.
    Now,
    /// Some years ago, for a day.
    Past,
}

/// What a certificate shall be.
#[derive(Debug, Clone, Copy)]
enum Kind<'a> {
    Anchor { uri: Option<&'a str> },
    Leaf { uri: &'a str },
}

/// The anchor that `mesh-agent ca init` has made in this directory.
pub fn anchor_in(dir: &Path) -> Credential {
    Credential { cert: dir.join("ca.crt"), key: dir.join("ca.key") }
}

/// A new trust anchor in this directory, made by us and not by the agent.
pub fn new_anchor(dir: &Path, name: &str, validity: Validity) -> Result<Credential> {
    new_anchor_for(dir, name, None, validity)
}

/// The same, with a URI that names its trust domain.
pub fn new_anchor_for(
    dir: &Path,
    name: &str,
    uri: Option<&str>,
    validity: Validity,
) -> Result<Credential> {
    make(dir, name, Kind::Anchor { uri }, None, validity)
}

/// A leaf certificate for this SPIFFE id, signed by the anchor.
pub fn leaf(
    dir: &Path,
    name: &str,
    anchor: &Credential,
    uri: &str,
    validity: Validity,
) -> Result<Credential> {
    make(dir, name, Kind::Leaf { uri }, Some(anchor), validity)
}

/// By `openssl ca`, since `openssl x509` cannot set a validity that lies in the past.
fn make(
    dir: &Path,
    name: &str,
    kind: Kind<'_>,
    signer: Option<&Credential>,
    validity: Validity,
) -> Result<Credential> {
    fs::create_dir_all(dir)?;
    let file = |end: &str| dir.join(format!("{name}.{end}"));
    let made = Credential { cert: file("crt"), key: file("key") };
    let request = ["req", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let request =
        request.map(str::to_owned).into_iter().chain(["-subj".into(), format!("/CN={name}")]);
    openssl(request.chain(["-keyout".into(), show(&made.key), "-out".into(), show(&file("csr"))]))?;
    let extensions = match kind {
        Kind::Anchor { uri } => format!(
            "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n\
             subjectKeyIdentifier=hash\n{}",
            uri.map(|uri| format!("subjectAltName=URI:{uri}\n")).unwrap_or_default(),
        ),
        Kind::Leaf { uri } => format!(
            "subjectAltName=critical,URI:{uri}\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=clientAuth,serverAuth\nbasicConstraints=critical,CA:false\n"
        ),
    };
    fs::write(file("index"), "")?;
    fs::write(
        file("cnf"),
        format!(
            "[ca]\ndefault_ca=us\n[us]\ndatabase={}\nnew_certs_dir={}\nrand_serial=yes\ndefault_md=sha256\n\
             policy=any\nx509_extensions=ext\n[any]\ncommonName=optional\n[ext]\n{extensions}",
            show(&file("index")),
            show(dir),
        ),
    )?;
    let (from, to) = match validity {
        Validity::Now => ("20260101000000Z", "20491231000000Z"),
        Validity::Past => ("20200101000000Z", "20200102000000Z"),
    };
    let sign = ["ca", "-batch", "-notext", "-startdate", from, "-enddate", to].map(str::to_owned);
    let paths = ["-config".into(), show(&file("cnf")), "-in".into(), show(&file("csr"))];
    let out = ["-out".into(), show(&made.cert)];
    let by = match signer {
        Some(signer) => {
            vec!["-cert".into(), show(&signer.cert), "-keyfile".into(), show(&signer.key)]
        }
        None => vec!["-selfsign".into(), "-keyfile".into(), show(&made.key)],
    };
    openssl(sign.into_iter().chain(paths).chain(out).chain(by))?;
    ensure!(made.cert.exists(), "openssl made no {}", made.cert.display());
    Ok(made)
}

fn openssl(arguments: impl Iterator<Item = String>) -> Result<()> {
    let arguments: Vec<String> = arguments.collect();
    let output = Command::new("openssl").args(&arguments).output().context("openssl")?;
    if output.status.success() {
        return Ok(());
    }
    bail!("openssl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr))
}

fn show(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssl_makes_what_we_want() {
        let dir = std::env::temp_dir().join(format!("nodemesh-certs-{}", std::process::id()));
        let anchor = new_anchor(&dir, "anchor", Validity::Now).unwrap();
        let uri = "spiffe://cluster.local/ns/shop/sa/web";
        let verify = |leaf: &Credential| {
            let verify =
                ["verify", "-CAfile", &show(&anchor.cert), &show(&leaf.cert)].map(str::to_owned);
            openssl(verify.into_iter())
        };
        verify(&leaf(&dir, "good", &anchor, uri, Validity::Now).unwrap()).unwrap();
        let past = verify(&leaf(&dir, "past", &anchor, uri, Validity::Past).unwrap()).unwrap_err();
        assert!(past.to_string().contains("expired"), "{past}");
        fs::remove_dir_all(dir).unwrap();
    }
}
