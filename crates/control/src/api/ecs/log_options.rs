//! The options of the `awslogs` log driver.
//!
//! Source: "Send Amazon ECS logs to CloudWatch" in the ECS developer guide, and Docker's "Amazon
//! CloudWatch Logs logging driver" for the multiline options.

use std::collections::BTreeMap;

use aws_api::Error;
use model::Region;
use model::spec::LogMode;
// The supervisor matches with the same engine.
use regex_lite::Regex;

use super::errors::client;

/// Options resolved, but for what only a task knows (its id) or the account says (the mode).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LogOptions {
    pub group: String,
    pub region: String,
    pub stream_prefix: Option<String>,
    pub create_group: bool,
    /// `None` when the account's `defaultLogDriverMode` decides.
    pub mode: Option<&'static str>,
    pub max_buffer_bytes: u64,
    pub multiline_pattern: Option<String>,
}

/// AWS's default of `max-buffer-size`: 10m.
const DEFAULT_BUFFER: u64 = 10 << 20;
/// A buffer is memory of the host's supervisor, so it is bounded.
const MAX_BUFFER: u64 = 1 << 30;
const KNOWN: [&str; 8] = [
    "awslogs-group",
    "awslogs-region",
    "awslogs-stream-prefix",
    "awslogs-create-group",
    "awslogs-datetime-format",
    "awslogs-multiline-pattern",
    "mode",
    "max-buffer-size",
];

impl LogOptions {
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self, Error> {
        let unknown: Vec<&str> =
            options.keys().map(String::as_str).filter(|key| !KNOWN.contains(key)).collect();
        if !unknown.is_empty() {
            return Err(client(format!("Log driver awslogs disallows options: {}", unknown.join(", "))));
        }
        let get = |name: &str| options.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let missing: Vec<&str> =
            ["awslogs-group", "awslogs-region"].into_iter().filter(|name| get(name).is_none()).collect();
        let (Some(group), Some(region)) = (get("awslogs-group"), get("awslogs-region")) else {
            return Err(client(format!("Log driver awslogs requires options: {}", missing.join(", "))));
        };
        let in_group = |c: char| c.is_ascii_alphanumeric() || "_-/.#".contains(c);
        if group.len() > 512 || !group.chars().all(in_group) {
            return Err(client("The option 'awslogs-group' is not a valid log group name."));
        }
        if Region::parse(region).is_err() {
            return Err(client("The option 'awslogs-region' is not a region's name."));
        }
        let prefix = get("awslogs-stream-prefix");
        // The stream is PREFIX/CONTAINER/TASK-ID; a stream's name has at most 512 characters without : and *.
        if prefix
            .is_some_and(|p| p.chars().count() > 223 || p.chars().any(|c| ":*".contains(c) || c.is_control()))
        {
            return Err(client(
                "The option 'awslogs-stream-prefix' can have up to 223 characters and no ':' or '*'.",
            ));
        }
        let create_group = match get("awslogs-create-group") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(client("The option 'awslogs-create-group' must be 'true' or 'false'.")),
        };
        let mode = match get("mode") {
            None => None,
            Some("blocking") => Some("blocking"),
            Some("non-blocking") => Some("non-blocking"),
            Some(_) => return Err(client("The option 'mode' must be 'blocking' or 'non-blocking'.")),
        };
        let buffer = match get("max-buffer-size") {
            None => DEFAULT_BUFFER,
            Some(text) => {
                parse_size(text).filter(|bytes| (1..=MAX_BUFFER).contains(bytes)).ok_or_else(|| {
                    client("The option 'max-buffer-size' must be a size such as '25m', at most '1g'.")
                })?
            }
        };
        Ok(Self {
            group: group.to_owned(),
            region: region.to_owned(),
            stream_prefix: prefix.map(str::to_owned),
            create_group,
            mode,
            max_buffer_bytes: buffer,
            multiline_pattern: multiline(get("awslogs-multiline-pattern"), get("awslogs-datetime-format"))?,
        })
    }

    pub fn mode(&self, account_default: &str) -> LogMode {
        match self.mode.unwrap_or(account_default) {
            "blocking" => LogMode::Blocking,
            _ => LogMode::NonBlocking { max_buffer_bytes: self.max_buffer_bytes },
        }
    }
}

/// `25m`, `1g`, `4096`: Docker's sizes, in powers of 1024.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn multiline(pattern: Option<&str>, datetime: Option<&str>) -> Result<Option<String>, Error> {
    match (pattern, datetime) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(client(
            "You cannot configure log opt 'awslogs-datetime-format' and 'awslogs-multiline-pattern' at the same time.",
        )),
        (Some(pattern), None) => {
            let bounded = pattern.len() <= 1024 && Regex::new(pattern).is_ok();
            if !bounded {
                return Err(client(
                    "The option 'awslogs-multiline-pattern' is not a valid regular expression.",
                ));
            }
            Ok(Some(pattern.to_owned()))
        }
        (None, Some(format)) => datetime_pattern(format).map(Some).ok_or_else(|| {
            client("The option 'awslogs-datetime-format' has a conversion that is not one of strftime's.")
        }),
    }
}

/// A pattern for what `strftime` writes with `format`, in the conversions that Docker's driver knows.
fn datetime_pattern(format: &str) -> Option<String> {
    if format.len() > 256 {
        return None;
    }
    let mut pattern = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            pattern.push_str(&regex_lite::escape(c.encode_utf8(&mut [0; 4])));
            continue;
        }
        pattern.push_str(match characters.next()? {
            'A' => "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day",
            'a' => "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)",
            'B' => {
                "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
            }
            'b' => "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)",
            'Y' => r"\d{4}",
            'd' | 'H' | 'I' | 'M' | 'S' | 'm' | 'y' => r"\d{2}",
            'f' => r"\d{6}",
            'j' => r"\d{3}",
            'L' => r"\.\d{3}",
            'w' => "[0-6]",
            'p' => "[AP]M",
            'Z' => r"[A-Z]{1,4}T",
            'z' => r"[+-]\d{4}",
            '%' => "%",
            _ => return None,
        });
    }
    Some(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<LogOptions, Error> {
        let mut all = BTreeMap::from([
            ("awslogs-group".to_owned(), "/ecs/web".to_owned()),
            ("awslogs-region".to_owned(), "eu-central-1".to_owned()),
        ]);
        all.extend(options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        LogOptions::parse(&all)
    }

    #[test]
    fn options_are_checked() {
        for (options, want) in [
            (vec![("awslogs-endpoint", "x")], "Log driver awslogs disallows options: awslogs-endpoint"),
            (vec![("awslogs-group", "")], "Log driver awslogs requires options: awslogs-group"),
            (
                vec![("awslogs-group", ""), ("awslogs-region", "")],
                "Log driver awslogs requires options: awslogs-group, awslogs-region",
            ),
            (vec![("awslogs-group", "a b")], "log group name"),
            (vec![("awslogs-region", "Europe")], "region's name"),
            (vec![("awslogs-stream-prefix", "a:b")], "awslogs-stream-prefix"),
            (vec![("awslogs-create-group", "yes")], "awslogs-create-group"),
            (vec![("mode", "async")], "'mode'"),
            (vec![("max-buffer-size", "lots")], "max-buffer-size"),
            (vec![("max-buffer-size", "0")], "max-buffer-size"),
            (vec![("max-buffer-size", "2g")], "max-buffer-size"),
            (vec![("max-buffer-size", "99999999999999999999g")], "max-buffer-size"),
            (vec![("awslogs-multiline-pattern", "(")], "regular expression"),
            (vec![("awslogs-multiline-pattern", r"^\p{Lu}(?=x)")], "regular expression"),
            (vec![("awslogs-datetime-format", "%Q")], "awslogs-datetime-format"),
            (vec![("awslogs-datetime-format", "%")], "awslogs-datetime-format"),
            (
                vec![("awslogs-multiline-pattern", "^x"), ("awslogs-datetime-format", "%Y")],
                "at the same time",
            ),
        ] {
            let error = parse(&options).unwrap_err();
            assert_eq!(error.code, "ClientException");
            assert!(error.message.contains(want), "{options:?}: {}", error.message);
        }
    }

    #[test]
    fn modes_and_buffers_are_awss() {
        let default = parse(&[]).unwrap();
        assert_eq!(default.mode("blocking"), LogMode::Blocking);
        assert_eq!(default.mode("non-blocking"), LogMode::NonBlocking { max_buffer_bytes: 10 << 20 });
        let own = parse(&[("mode", "non-blocking"), ("max-buffer-size", "25m")]).unwrap();
        assert_eq!(own.mode("blocking"), LogMode::NonBlocking { max_buffer_bytes: 25 << 20 });
        let own = parse(&[("mode", "blocking")]).unwrap();
        assert_eq!(own.mode("non-blocking"), LogMode::Blocking);
    }

    #[test]
    fn a_datetime_format_matches_what_it_writes() {
        for (format, line, matches) in [
            ("[%b %d, %Y %H:%M:%S]", "[May 01, 2026 19:00:01] A message", true),
            ("[%b %d, %Y %H:%M:%S]", "  at line 3", false),
            ("%Y-%m-%dT%H:%M:%S.%f%z", "2026-05-01T19:00:01.123456+0200 x", true),
            ("%A %B %j %w %p %Z %y 100%%", "Friday May 121 5 PM CEST 26 100%", true),
        ] {
            let pattern = parse(&[("awslogs-datetime-format", format)]).unwrap().multiline_pattern.unwrap();
            assert_eq!(Regex::new(&pattern).unwrap().is_match(line), matches, "{format} as {pattern}");
        }
    }
}
