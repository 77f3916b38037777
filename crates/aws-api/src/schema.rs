//! The constraint tables that the generator fills.

/// What a model demands of a value.
#[derive(Debug)]
pub struct Schema {
    /// The shape's name.
    pub name: &'static str,
    /// Its type with its constraints.
    pub kind: Kind,
}

/// A shape's type. Bounds are inclusive; lengths count characters, bytes or members.
#[derive(Debug)]
pub enum Kind {
    Structure {
        members: &'static [Member],
    },
    List {
        member: &'static Schema,
        min: Option<u64>,
        max: Option<u64>,
    },
    Map {
        key: &'static Schema,
        value: &'static Schema,
        min: Option<u64>,
        max: Option<u64>,
    },
    String {
        min: Option<u64>,
        max: Option<u64>,
        /// Must match the whole string.
        pattern: Option<&'static str>,
        /// The enumeration's values; empty if it is none.
        values: &'static [&'static str],
    },
    Integer {
        min: Option<i64>,
        max: Option<i64>,
    },
    Long {
        min: Option<i64>,
        max: Option<i64>,
    },
    Double {
        min: Option<f64>,
        max: Option<f64>,
    },
    Boolean,
    Timestamp,
    Blob {
        min: Option<u64>,
        max: Option<u64>,
    },
    /// Any JSON value.
    Document,
}

/// A structure's member.
#[derive(Debug)]
pub struct Member {
    /// The name on the wire.
    pub name: &'static str,
    pub required: bool,
    pub schema: &'static Schema,
}

/// The input of an operation whose model gives it none.
pub static EMPTY: Schema = Schema { name: "Unit", kind: Kind::Structure { members: &[] } };
