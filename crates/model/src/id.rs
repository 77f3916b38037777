//! Identifiers, a type each, so that one cannot be passed for another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A string that is not a valid identifier of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {kind}")]
pub struct InvalidId {
    pub kind: &'static str,
    pub value: String,
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// # Errors
            /// When `value` does not have the form of this identifier.
            pub fn parse(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                let valid: fn(&str) -> bool = $valid;
                if valid(&value) { Ok(Self(value)) } else { Err(InvalidId { kind: $kind, value }) }
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::parse(value)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::parse(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn lower_hex(value: &str, length: usize) -> bool {
    value.len() == length && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn prefixed_hex(value: &str, prefix: &str) -> bool {
    value.strip_prefix(prefix).is_some_and(|hex| lower_hex(hex, 17) || lower_hex(hex, 8))
}

fn name_chars(value: &str, max: usize) -> bool {
    (1..=max).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

identifier!(
    /// A 12-digit AWS account number.
    AccountId, "account id", |v| v.len() == 12 && v.bytes().all(|b| b.is_ascii_digit())
);
identifier!(
    /// A region name such as `eu-central-1`.
    Region, "region", |v| (1..=32).contains(&v.len())
        && v.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
);
identifier!(
    /// A task's id: 32 lower-case hexadecimal digits, the last part of its ARN.
    TaskId, "task id", |v| lower_hex(v, 32)
);
identifier!(
    /// A cluster's name: up to 255 letters, digits, hyphens and underscores.
    ClusterName, "cluster name", |v| name_chars(v, 255)
);
identifier!(
    /// One machine that runs tasks. Made once and kept in the agent's state directory.
    HostId, "host id", |v| name_chars(v, 64)
);
identifier!(
    /// `vpc-` and 8 or 17 hexadecimal digits.
    VpcId, "VPC id", |v| prefixed_hex(v, "vpc-")
);
identifier!(
    /// `subnet-` and 8 or 17 hexadecimal digits.
    SubnetId, "subnet id", |v| prefixed_hex(v, "subnet-")
);
identifier!(
    /// `sg-` and 8 or 17 hexadecimal digits.
    SecurityGroupId, "security group id", |v| prefixed_hex(v, "sg-")
);
identifier!(
    /// `eni-` and 8 or 17 hexadecimal digits.
    EniId, "network interface id", |v| prefixed_hex(v, "eni-")
);

identifier!(
    /// `snap-` and 8 or 17 hexadecimal digits: a snapshot of a task.
    SnapshotId, "snapshot id", |v| prefixed_hex(v, "snap-")
);

impl TaskId {
    /// A task id from 128 random bits.
    #[must_use]
    pub fn from_random(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }
}

impl SnapshotId {
    /// A snapshot id from random bits (the lowest 68 are used).
    #[must_use]
    pub fn from_random(bits: u128) -> Self {
        Self(format!("snap-{:017x}", bits & ((1 << 68) - 1)))
    }
}

impl EniId {
    /// A network interface id from random bits (the lowest 68 are used).
    #[must_use]
    pub fn from_random(bits: u128) -> Self {
        Self(format!("eni-{:017x}", bits & ((1 << 68) - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_their_form_and_nothing_else() {
        assert!(AccountId::parse("123456789012").is_ok());
        assert!(AccountId::parse("12345678901").is_err());
        assert!(TaskId::parse("0123456789abcdef0123456789abcdef").is_ok());
        assert!(TaskId::parse("0123456789ABCDEF0123456789abcdef").is_err());
        assert!(TaskId::parse("../../../../etc/passwd0123456789").is_err());
        assert!(SubnetId::parse("subnet-0123456789abcdef0").is_ok());
        assert!(SubnetId::parse("subnet-xyz").is_err());
        assert!(EniId::parse(EniId::from_random(u128::MAX).as_str()).is_ok());
        assert!(SnapshotId::parse(SnapshotId::from_random(u128::MAX).as_str()).is_ok());
        assert!(SnapshotId::parse("snap-../../../../etc").is_err());
        assert!(serde_roundtrip_rejects());
    }

    fn serde_roundtrip_rejects() -> bool {
        ClusterName::parse("has space").is_err() && ClusterName::parse("a".repeat(256)).is_err()
    }
}
