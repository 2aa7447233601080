//! Who asks: the request id, and the tenant behind the API key.

use std::fmt;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::ApiError;

/// Names a request, on the way in and on the way out.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken from a client, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Longest API key that is looked at, in bytes.
const MAX_KEY_BYTES: usize = 1024;

/// SHA-256 of an API key: all that needs to be kept of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// The digest of a key.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = (digit(0)? * 16 + digit(1)?) as u8;
        }
        Some(Self(digest))
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(..)")
    }
}

/// No key, or a wrong one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WrongKey {
    /// None was sent.
    Missing,
    /// It is not one of ours.
    Unknown,
}

impl From<WrongKey> for ApiError {
    fn from(why: WrongKey) -> Self {
        Self::unauthorized(match why {
            WrongKey::Missing => {
                "no API key: send the header `authorization: Bearer KEY` with a key of this server"
            }
            WrongKey::Unknown => "wrong API key: send one of this server's keys, exactly as it was given",
        })
    }
}

/// The API keys that are accepted, each with the number of its owner.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<(KeyDigest, u32)>);

impl Keys {
    /// Accepts a key.
    pub fn add(&mut self, digest: KeyDigest, owner: u32) {
        self.0.push((digest, owner));
    }

    /// Whether no key is needed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The owner of the key that a request presents. It takes the same time whichever key matches, or none.
    ///
    /// # Errors
    /// [`WrongKey`] if there is none, or none of these.
    pub fn owner(&self, headers: &HeaderMap) -> Result<u32, WrongKey> {
        let presented = headers.get(header::AUTHORIZATION).and_then(bearer).ok_or(WrongKey::Missing)?;
        let fits = presented.len() <= MAX_KEY_BYTES;
        let digest = KeyDigest::of(&presented[..presented.len().min(MAX_KEY_BYTES)]);
        // Every key is compared, so that the time tells nothing of which one matched.
        let mut matched = u32::MAX;
        for (known, owner) in &self.0 {
            let equal: Choice = known.0.ct_eq(&digest.0);
            matched.conditional_assign(owner, equal);
        }
        if fits && matched != u32::MAX { Ok(matched) } else { Err(WrongKey::Unknown) }
    }
}

/// The token of `Bearer TOKEN`; the scheme's name may be in any case (RFC 9110), the token not.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = value.as_bytes().split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(token)
}

/// The request id that a client gave, if it can be repeated in headers, logs and paths.
pub fn sane_request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
    let fits = (1..=MAX_REQUEST_ID_BYTES).contains(&id.len());
    // Clients resolve these two away in the path under which a request is found.
    let path_step = matches!(id, "." | "..");
    (fits && !path_step && id.bytes().all(sane)).then_some(id)
}

/// An id that no other request has: 96 random bits. It is a name, not a secret.
pub fn random_id() -> String {
    format!("{:016x}{:08x}", fastrand::u64(..), fastrand::u32(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    fn owner_of(authorization: &str) -> Result<u32, WrongKey> {
        let mut keys = Keys::default();
        for (owner, key) in (0..).zip(["sk-One", "sk-Two"]) {
            keys.add(KeyDigest::of(key.as_bytes()), owner);
        }
        keys.owner(&headers(header::AUTHORIZATION, authorization))
    }

    #[test]
    fn keys_are_compared_exactly() {
        assert_eq!(owner_of("Bearer sk-Two"), Ok(1));
        assert_eq!(owner_of("bearer sk-One"), Ok(0));
        for wrong in ["Bearer sk-one", "Bearer SK-ONE", "Bearer sk-On", "Bearer sk-One ", "Bearer "] {
            assert_eq!(owner_of(wrong), Err(WrongKey::Unknown), "{wrong:?}");
        }
        for missing in ["sk-One", ""] {
            assert_eq!(owner_of(missing), Err(WrongKey::Missing), "{missing:?}");
        }
    }

    #[test]
    fn an_endless_key_is_wrong_even_if_it_begins_with_a_right_one() {
        let key = "k".repeat(MAX_KEY_BYTES);
        let mut keys = Keys::default();
        keys.add(KeyDigest::of(key.as_bytes()), 7);
        let presented = |key: &str| keys.owner(&headers(header::AUTHORIZATION, &format!("Bearer {key}")));
        assert_eq!(presented(&key), Ok(7));
        assert_eq!(presented(&format!("{key}k")), Err(WrongKey::Unknown));
    }

    #[test]
    fn a_digest_is_read_from_hex_and_never_printed() {
        let digest = KeyDigest::of(b"abc");
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyDigest::from_hex(hex), Some(digest));
        assert_eq!((KeyDigest::from_hex("ba78"), KeyDigest::from_hex(&"z".repeat(64))), (None, None));
        assert_eq!(format!("{digest:?}"), "KeyDigest(..)");
    }

    #[test]
    fn a_client_may_name_its_request_with_a_sane_id_only() {
        assert_eq!(sane_request_id(&headers(REQUEST_ID, "a-1.b")), Some("a-1.b"));
        for odd in ["", "a b", "<script>", "x\ty", ".", "..", &"x".repeat(129)] {
            assert_eq!(sane_request_id(&headers(REQUEST_ID, odd)), None, "{odd:?}");
        }
    }
}
