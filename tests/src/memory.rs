//! The memory of a running process, searched for a private key.
//!
//! The key is not known beforehand, only its public half. Every place of the writable memory that
//! could be a P-256 scalar is multiplied with the curve's generator until the public key comes out.
//! So the agent needs no test hook. A search that finds the key where it must be proves that the
//! search works.

use std::{
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};

use crate::exec::Place;

/// Bytes of a P-256 scalar, and of the words in which the crypto library keeps it.
const SCALAR: usize = 32;
const WORD: usize = 8;

/// 32 bytes with fewer distinct values than this are text, pointers or counters. Random bytes have
/// 30.1 distinct values on average; one key in a million has fewer than 24.
const DISTINCT: usize = 24;

/// Bytes of an uncompressed point.
const POINT: usize = 65;

/// A P-256 public key, as in a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; POINT]);

/// A private key that was found.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    big_endian: [u8; SCALAR],
}

/// Where something lies in a process's memory.
#[derive(Debug)]
pub struct Found {
    /// The line of `/proc/PID/maps`.
    pub mapping: String,
    /// The address.
    pub address: u64,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:02x?}…)", &self.0[1..5])
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({:02x?}…)", &self.big_endian[..4])
    }
}

/// The public key of the certificate that the server at `to` shows to a TLS client from `from`.
pub fn shown_at(place: &Place, from: &str, to: &str) -> Result<PublicKey> {
    let connect = "openssl s_client -tls1_3 -alpn nodemesh/1";
    public_key(place, &format!("{connect} -connect {to} -bind {from} < /dev/null 2>&1"))
}

/// The public key of a certificate in a PEM file.
pub fn in_file(place: &Place, certificate: &Path) -> Result<PublicKey> {
    public_key(place, &format!("cat {}", certificate.display()))
}

/// The public key of the certificate that a command prints among other things.
fn public_key(place: &Place, command: &str) -> Result<PublicKey> {
    let der = "openssl x509 -pubkey -noout | openssl pkey -pubin -outform DER | od -An -v -tx1";
    let output = place.run(["sh", "-c", &format!("{command} | {der}")])?.success()?;
    let der: Vec<u8> = output
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    let point = der.last_chunk().with_context(|| format!("no key from `{command}`: {output}"))?;
    ensure!(point[0] == 4, "no uncompressed point from `{command}`: {output}");
    Ok(PublicKey(*point))
}

/// Looks for the private half of `public` in the writable memory of a process.
pub fn find_private(pid: u32, public: &PublicKey) -> Result<Option<Secret>> {
    for (_, _, bytes) in readable(pid, |mapping| mapping.contains(" rw"))? {
        for window in bytes.windows(SCALAR).step_by(WORD) {
            if !looks_random(window) {
                continue;
            }
            let mut scalar: [u8; SCALAR] = window.try_into()?;
            for _ in ["as written", "as words of a little-endian machine"] {
                if is_private_half(&scalar, public) {
                    return Ok(Some(Secret { big_endian: scalar }));
                }
                scalar.reverse();
            }
        }
    }
    Ok(None)
}

/// Every place in the readable memory of a process where a private key lies, in either byte order.
pub fn occurrences(pid: u32, secret: &Secret) -> Result<Vec<Found>> {
    let mut little_endian = secret.big_endian;
    little_endian.reverse();
    let mut found = Vec::new();
    for (mapping, start, bytes) in readable(pid, |_| true)? {
        for form in [&secret.big_endian, &little_endian] {
            let mut from = 0;
            while let Some(at) = position(&bytes[from..], form) {
                let address = start + (from + at) as u64;
                found.push(Found { mapping: mapping.clone(), address });
                from += at + 1;
            }
        }
    }
    Ok(found)
}

/// Every readable mapping that `wanted` accepts: its line, its start, its bytes.
fn readable(pid: u32, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, u64, Vec<u8>)>> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut all = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let (range, rest) = line.split_once(' ').context("no range")?;
        // The kernel's own pages cannot hold a key and cannot all be read.
        if !rest.starts_with('r') || rest.ends_with("[vvar]") || rest.ends_with("[vsyscall]") {
            continue;
        }
        if !wanted(line) {
            continue;
        }
        let (start, end) = range.split_once('-').context("no end")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        match memory.read_exact_at(&mut bytes, start) {
            Ok(()) => all.push((line.to_owned(), start, bytes)),
            // EIO or EFAULT: unmapped meanwhile, or a device's memory.
            Err(error) if matches!(error.raw_os_error(), Some(5 | 14)) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error).with_context(|| line.to_owned()),
        }
    }
    ensure!(!all.is_empty(), "process {pid} has no readable memory");
    Ok(all)
}

fn looks_random(window: &[u8]) -> bool {
    let mut seen = [0u64; 4];
    for byte in window {
        seen[usize::from(byte / 64)] |= 1 << (byte % 64);
    }
    seen.iter().map(|word| word.count_ones() as usize).sum::<usize>() >= DISTINCT
}

fn is_private_half(scalar: &[u8; SCALAR], public: &PublicKey) -> bool {
    let made = PrivateKey::from_private_key(&ECDH_P256, scalar);
    made.is_ok_and(|key| key.compute_public_key().is_ok_and(|found| found.as_ref() == public.0))
}

fn position(bytes: &[u8], wanted: &[u8; SCALAR]) -> Option<usize> {
    let (first, mut from) = (wanted[0], 0);
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == first) {
        let at = from + at;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}
