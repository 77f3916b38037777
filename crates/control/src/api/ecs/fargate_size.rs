//! Task sizes: how they are written and which Fargate has.
//!
//! Source: "Task size" in "Amazon ECS task definition parameters for Fargate", ECS developer guide.

use aws_api::Error;

use super::errors::client;

/// 1024 units are one vCPU. Written as units (`256`) or vCPUs (`.25 vCPU`, `1 vCPU`).
pub(super) fn parse_cpu(text: &str) -> Result<u32, Error> {
    let units = number_with_unit(text, &[("vcpu", 1024.0), ("vcpus", 1024.0), ("", 1.0)]);
    units.ok_or_else(|| client(format!("Invalid 'cpu' setting for task. '{}'", shown(text))))
}

/// In MiB. Written as MiB (`512`, `512 MB`) or GiB (`0.5 GB`, `1GB`).
pub(super) fn parse_memory(text: &str) -> Result<u32, Error> {
    let units = [("gib", 1024.0), ("gb", 1024.0), ("mib", 1.0), ("mb", 1.0), ("", 1.0)];
    let mib = number_with_unit(text, &units);
    mib.ok_or_else(|| client(format!("Invalid 'memory' setting for task. '{}'", shown(text))))
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// A positive whole amount, as a number and a unit in any case with optional space between.
fn number_with_unit(text: &str, units: &[(&str, f64)]) -> Option<u32> {
    let text = text.trim().to_ascii_lowercase();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number = number.trim_end();
    // Of what f64 parses, only plain decimals are meant.
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let scale = units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale)?;
    let amount = number.parse::<f64>().ok()? * scale;
    let whole = amount >= 1.0 && amount <= f64::from(u32::MAX) && amount.fract() == 0.0;
    // In range and whole by the line before.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    whole.then_some(amount as u32)
}

/// Whether Fargate has tasks of that many CPU units and MiB.
pub(super) fn exists(cpu: u32, memory: u32) -> bool {
    let gib = |range: std::ops::RangeInclusive<u32>, step: u32| {
        memory.is_multiple_of(1024)
            && range.contains(&(memory / 1024))
            && (memory / 1024 - range.start()).is_multiple_of(step)
    };
    match cpu {
        256 => matches!(memory, 512 | 1024 | 2048),
        512 => gib(1..=4, 1),
        1024 => gib(2..=8, 1),
        2048 => gib(4..=16, 1),
        4096 => gib(8..=30, 1),
        8192 => gib(16..=60, 4),
        16384 => gib(32..=120, 8),
        _ => false,
    }
}

/// # Errors
/// In Fargate's words, when it has no tasks of that size.
pub(super) fn check(cpu: u32, memory: u32) -> Result<(), Error> {
    if exists(cpu, memory) {
        return Ok(());
    }
    Err(client(format!(
        "No Fargate configuration exists for given values: {cpu} CPU, {memory} memory. See the Amazon ECS \
         documentation for the valid values."
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_all_their_spellings() {
        for (text, want) in [
            ("256", Some(256)),
            (".25 vCPU", Some(256)),
            ("0.25vcpu", Some(256)),
            ("1 vCPU", Some(1024)),
            ("16 VCPU", Some(16384)),
            ("", None),
            ("vcpu", None),
            ("-256", None),
            ("+256", None),
            ("1e3", None),
            ("inf", None),
            ("nan", None),
            ("0", None),
            ("0.0001 vcpu", None),
            ("256 cores", None),
            ("99999999999", None),
            ("1..5", None),
        ] {
            assert_eq!(parse_cpu(text).ok(), want, "{text}");
        }
        for (text, want) in [
            ("512", Some(512)),
            ("0.5 GB", Some(512)),
            (".5GB", Some(512)),
            ("30 GB", Some(30720)),
            ("512 MB", Some(512)),
            ("1 TB", None),
            ("1.0001 GB", None),
        ] {
            assert_eq!(parse_memory(text).ok(), want, "{text}");
        }
        assert!(parse_cpu("x").unwrap_err().message.starts_with("Invalid 'cpu' setting for task."));
    }

    #[test]
    fn the_table_is_fargates() {
        let gib = |list: &mut dyn Iterator<Item = u32>| list.map(|g| g * 1024).collect::<Vec<u32>>();
        let table = [
            (256, vec![512, 1024, 2048]),
            (512, gib(&mut (1..=4))),
            (1024, gib(&mut (2..=8))),
            (2048, gib(&mut (4..=16))),
            (4096, gib(&mut (8..=30))),
            (8192, gib(&mut (16..=60).step_by(4))),
            (16384, gib(&mut (32..=120).step_by(8))),
        ];
        for cpu in (0..=20000).step_by(64) {
            for memory in (0..=131_072).step_by(256) {
                let listed = table.iter().any(|(c, memories)| *c == cpu && memories.contains(&memory));
                assert_eq!(exists(cpu, memory), listed, "{cpu} {memory}");
            }
        }
        assert_eq!(
            check(256, 4096).unwrap_err().message,
            "No Fargate configuration exists for given values: 256 CPU, 4096 memory. See the Amazon ECS documentation \
             for the valid values."
        );
    }
}
