//! Digests, by which the parts of an image name each other.

use std::{
    fmt,
    io::{self, Read},
};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, de};
use sha2::{Digest as _, Sha256, Sha512};

/// The digest of some bytes, such as `sha256:…`. What it names in a directory is no path that leads elsewhere: it is hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Digest {
    /// Reads one as the image specification writes it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (algorithm, hex) = text.split_once(':')?;
        let (algorithm, length) = match algorithm {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return None,
        };
        let is_hex = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (hex.len() == length && is_hex).then(|| Self { algorithm, hex: hex.to_owned() })
    }

    /// That of bytes whose SHA-256 is `hex`.
    #[must_use]
    pub fn sha256(hex: &str) -> Option<Self> {
        Self::parse(&format!("sha256:{hex}"))
    }

    /// The names that lead to the blob in an OCI layout.
    #[must_use]
    pub fn path(&self) -> [&str; 3] {
        let algorithm = match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        };
        ["blobs", algorithm, &self.hex]
    }

    pub(crate) fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    /// Whether these bytes are what it says.
    pub(crate) fn holds_for(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, algorithm, hex] = self.path();
        write!(f, "{algorithm}:{hex}")
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            de::Error::custom(format!("{shown:?} is no digest of a kind that is known (sha256, sha512)"))
        })
    }
}

/// Computes a digest.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => {
                Digest { algorithm: Algorithm::Sha256, hex: HEXLOWER.encode(hasher.finalize().as_slice()) }
            }
            Self::Sha512(hasher) => {
                Digest { algorithm: Algorithm::Sha512, hex: HEXLOWER.encode(hasher.finalize().as_slice()) }
            }
        }
    }
}

/// Passes bytes on, and knows the digest of all that passed.
#[derive(Debug)]
pub(crate) struct Hashing<R> {
    inner: R,
    hasher: Option<Hasher>,
}

impl<R> Hashing<R> {
    /// For comparing with `wanted`; without one nothing is computed.
    pub(crate) fn new(inner: R, wanted: Option<&Digest>) -> Self {
        Self { inner, hasher: wanted.map(Digest::hasher) }
    }

    /// The digest of what passed.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.hasher.clone().map(Hasher::finish)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&out[..read]);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_digest_is_one() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest = Digest::parse(empty).unwrap();
        assert!(digest.holds_for(b"") && !digest.holds_for(b"x"));
        assert_eq!(digest.to_string(), empty);
        for wrong in ["sha256:../../etc/passwd", "sha256:E3", "md5:d41d8cd98f00b204e9800998ecf8427e", "", "sha256"] {
            assert_eq!(Digest::parse(wrong), None, "{wrong}");
        }
    }
}
