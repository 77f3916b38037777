//! The order of Debian's version numbers (deb-version(7)).

use std::cmp::Ordering;

/// Compares `[epoch:]upstream-version[-debian-revision]`.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let ((a_epoch, a_upstream, a_revision), (b_epoch, b_upstream, b_revision)) = (split(a), split(b));
    compare_numbers(a_epoch, b_epoch)
        .then_with(|| compare_part(a_upstream, b_upstream))
        .then_with(|| compare_part(a_revision, b_revision))
}

fn split(version: &str) -> (&str, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// By turns a part without digits and a number.
fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    while !(a.is_empty() && b.is_empty()) {
        let (a_text, a_rest) = split_at_end_of(a, |c| !c.is_ascii_digit());
        let (b_text, b_rest) = split_at_end_of(b, |c| !c.is_ascii_digit());
        let (a_number, a_rest) = split_at_end_of(a_rest, |c| c.is_ascii_digit());
        let (b_number, b_rest) = split_at_end_of(b_rest, |c| c.is_ascii_digit());
        let order = compare_text(a_text, b_text).then_with(|| compare_numbers(a_number, b_number));
        if order.is_ne() {
            return order;
        }
        (a, b) = (a_rest, b_rest);
    }
    Ordering::Equal
}

fn split_at_end_of(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

/// Letters before all others, and a tilde before everything, even the end.
fn compare_text(a: &str, b: &str) -> Ordering {
    let rank = |byte: Option<&u8>| match byte {
        Some(b'~') => 0,
        None => 1,
        Some(byte) if byte.is_ascii_alphabetic() => 2 + u16::from(*byte),
        Some(byte) => 300 + u16::from(*byte),
    };
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let longest = a.len().max(b.len());
    (0..longest)
        .map(|i| rank(a.get(i)).cmp(&rank(b.get(i))))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// Numbers of any length.
fn compare_numbers(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_debian_orders_them() {
        let ordered = [
            "",
            "~~",
            "6.1.9-1",
            "6.1.76-1~bpo11+1",
            "6.1.76-1",
            "6.1.119-1",
            "6.1.192-2",
            "6.1.192-10",
            "6.10~rc1-1",
            "6.10-1",
            "6.10a-1",
            "6.10+b1-1",
            "6.12.6-1",
            "1:1.0",
        ];
        // "" is the empty version; "~~" sorts before it.
        let mut ordered = ordered.to_vec();
        ordered.swap(0, 1);
        for (i, a) in ordered.iter().enumerate() {
            for (j, b) in ordered.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(compare("6.01-0", "0:6.1"), Ordering::Equal);
    }
}
