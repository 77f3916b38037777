use super::*;
use proptest::prelude::*;

fn matches(pattern: &str, message: &str) -> bool {
    FilterPattern::parse(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}")).matches(message)
}

/// The messages of `messages` that match.
fn select<'m>(pattern: &str, messages: &[&'m str]) -> Vec<&'m str> {
    let pattern = FilterPattern::parse(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
    let matched = messages.iter().copied();
    matched.filter(|message| pattern.matches(message)).collect()
}

fn refused(pattern: &str) -> String {
    match FilterPattern::parse(pattern) {
        Ok(_) => panic!("{pattern} was accepted"),
        Err(error) => error.to_string(),
    }
}

const REQUESTS: [&str; 4] = [
    "[ERROR 400] BAD REQUEST",
    "[ERROR 401] UNAUTHORIZED REQUEST",
    "[ERROR 419] MISSING ARGUMENTS",
    "[ERROR 420] INVALID ARGUMENTS",
];

#[test]
fn unstructured_examples_of_the_guide() {
    assert_eq!(select("ERROR", &REQUESTS), REQUESTS);
    assert_eq!(select("ERROR ARGUMENTS", &REQUESTS), &REQUESTS[2..]);
    assert_eq!(select("?ERROR ?ARGUMENTS", &REQUESTS), REQUESTS);
    assert_eq!(select("ERROR -ARGUMENTS", &REQUESTS), &REQUESTS[..2]);
    assert!(matches("\"INTERNAL SERVER ERROR\"", "[ERROR 500] INTERNAL SERVER ERROR"));
    assert!(!matches("\"INTERNAL SERVER ERROR\"", "SERVER INTERNAL ERROR"));
    assert_eq!(select("\" \"", &REQUESTS), REQUESTS);
    assert_eq!(select("", &REQUESTS), REQUESTS);
    assert_eq!(select("%AUTHORIZED%", &REQUESTS), &REQUESTS[1..2]);
    let infos = ["[INFO] REQUEST FAILED", "[WARN] UNAUTHORIZED REQUEST", "[ERROR] 400 BAD REQUEST"];
    assert_eq!(select("?ERROR ?ARGUMENTS REQUEST", &infos), infos);
}

#[test]
fn unstructured_terms_are_case_sensitive_and_found_within_words() {
    assert!(!matches("error", "ERROR"));
    assert!(matches("ERROR Exception", "[ERROR] Caught IllegalArgumentException"));
    assert!(matches("-ERROR", "fine"));
    assert!(!matches("-ERROR", "an ERROR"));
    assert!(matches("-\"two words\" fine", "fine two  words"));
    assert!(matches(r#""say \"hi\"""#, r#"they say "hi""#));
    assert!(matches("?a ?\"b c\"", "b c"));
    assert!(matches("\"2*3\"", "2*3"));
    assert!(matches("naïve", "so naïve"));
}

#[test]
fn regex_examples_of_the_guide() {
    for (pattern, yes, no) in [
        ("%^[hc]at%", "hat", "that"),
        ("%[hc]at$%", "a cat", "cats"),
        ("%colou?r%", "color", "colr"),
        ("%[abcx-z]%", "y", "w"),
        ("%^a{3,5}$%", "aaaa", "aaaaaa"),
        ("%^a{ , 2}$%", "aa", "aaa"),
        ("%^a{2,}$%", "aaa", "a"),
        ("%gray|grey%", "grey", "gry"),
        ("%^starting|^initializing|^shutting down%", "initializing ...", "skipping initializing ..."),
        ("%abcc|ab[^c]$%", "aba", "aac ..."),
        (r"%\[.\]%", "[@]", "[]"),
        (r"%10\.10\.0\.1%", "10.10.0.1", "10010,051"),
        ("%10.10.0.1%", "10010,051", "10.10"),
        ("%ab[0-9]*%", "ab129", "a1"),
        ("%ab+c%", "abbc", "ac"),
        ("%.at%", " at", "at"),
        (r"%^\d$%", "7", "٣"),
        (r"%^\w$%", "_", "é"),
        (r"%a\sb%", "a\tb", "a_b"),
        (r"%\x3A\x28%", ":(", ":)"),
        (r"%[\d\-]x%", "-x", "ax"),
        ("%[a-]x%", "-x", "bx"),
        ("%[[^a]x%", "^x", "bx"),
    ] {
        assert!(matches(pattern, yes), "{pattern} on {yes}");
        assert!(!matches(pattern, no), "{pattern} on {no}");
    }
    for bad in [
        "%something!%",
        "%(a)%",
        "%é%",
        "%a{99999999}%",
        "%a{60000}{60000}%",
        "%[a%",
        "%a",
        "%%",
        r"%\p%",
        "%a% %b% %c%",
        "%[a&&b]%",
    ] {
        assert!(FilterPattern::parse(bad).is_err(), "{bad}");
    }
}

const TRAIL: &str = r#"{"eventType":"UpdateTrail","sourceIPAddress":"111.111.111.111",
    "arrayKey":["value","another value"],"objectList":[{"name":"a","id":1},{"name":"b","id":2}],
    "SomeObject":null,"cluster.name":"c"}"#;

const USERS: &str = r#"{"user":{"id":1,"email":"John.Stiles@example.com"},
    "users":[{"id":2,"email":"John.Doe@example.com"},{"id":3,"email":"Jane.Doe@example.com"}],
    "actions":["GET","PUT","DELETE"],"coordinates":[[0,1,2],[4,5,6],[7,8,9]]}"#;

#[test]
fn json_examples_of_the_guide() {
    for pattern in [
        r#"{ $.eventType = "UpdateTrail" }"#,
        "{ $.sourceIPAddress != 123.123.* }",
        r#"{ $.arrayKey[0] = "value" }"#,
        "{ $.eventType = %Trail% }",
        "{ $.arrayKey[*] = %val.{2}% }",
        r"{ $.* = %111\.111\.111\.1[0-9]{1,2}% }",
        "{ $.['cluster.name'] = \"c\" }",
        "{ $.SomeObject IS NULL }",
        "{ $.SomeOtherObject NOT EXISTS }",
        "{ $.objectList[1].id = 2 }",
        "{$.objectList[*].name=b}",
    ] {
        assert!(matches(pattern, TRAIL), "{pattern}");
    }
    for (pattern, expected) in [
        (r#"{ ($.user.id = 1) && ($.users[0].email = "John.Doe@example.com") }"#, true),
        (
            r#"{ $.user.email = "John.Stiles@example.com" || $.coordinates[0][1] = "nonmatch" && $.actions[2] = "nonmatch" }"#,
            true,
        ),
        (
            r#"{ ($.user.email = "John.Stiles@example.com" || $.coordinates[0][1] = "nonmatch") && $.actions[2] = "nonmatch" }"#,
            false,
        ),
        (r#"{ ($.user.id = 2 && $.users[0].email = "nonmatch") || $.actions[2] = "GET" }"#, false),
    ] {
        assert_eq!(matches(pattern, USERS), expected, "{pattern}");
    }
}

#[test]
fn json_numbers() {
    let message = r#"{"bandwidth":76,"latency":49.5,"refreshRate":60,"responseTime":5,"errorCode":400,
        "number":[1000,0.001],"account":123456789012345678,"text":"400","negative":-3}"#;
    for (pattern, expected) in [
        ("{ $.bandwidth > 75 }", true),
        ("{ $.latency < 50 }", true),
        ("{ $.refreshRate >= 60 }", true),
        ("{ $.responseTime <= 5 }", true),
        ("{ $.errorCode = 400}", true),
        ("{ $.errorCode != 500 }", true),
        ("{ $.number[0] = 1e+3 }", true),
        ("{ $.number[0] != 1e-3 }", true),
        ("{ $.number[1] = 1E-3 }", true),
        ("{ $.errorCode = 4* }", true),
        ("{ $.errorCode = 5* }", false),
        ("{ $.account = 123456789012345678 }", true),
        ("{ $.account = 123456789012345679 }", false),
        ("{ $.text = 400 }", true),
        ("{ $.text > 300 }", false),
        ("{ $.negative = -3 }", true),
        ("{ $.negative < +1 }", true),
        ("{ $.missing != 1 }", false),
        ("{ $.number != 1 }", false),
    ] {
        assert_eq!(matches(pattern, message), expected, "{pattern}");
    }
}

#[test]
fn json_booleans_quotes_and_shapes() {
    let message =
        r#"{"ok":true,"bad":false,"s":"y","star":"a*b","detail-type":"x","a":{"b":[{"c":"deep"}]}}"#;
    for (pattern, expected) in [
        ("{ $.ok IS TRUE }", true),
        ("{ $.ok IS FALSE }", false),
        ("{ $.bad is false }", true),
        ("{ $.ok = true }", true),
        ("{ $.s = 'y' }", true),
        ("{ $.s != 'y' }", false),
        (r#"{ $.star = "a\*b" }"#, true),
        (r#"{ $.s = "\*" }"#, false),
        ("{ $.detail-type = x }", true),
        ("{ $.a.b[0].c = d*p }", true),
        ("{ $.a.b[*].c = \"deep\" }", true),
        ("{ $.a.*[0].c = \"deep\" }", true),
        ("{ $.a.b[9] NOT EXISTS }", true),
        ("{ $.a NOT EXISTS }", false),
        ("{((($.ok IS TRUE)))}", true),
    ] {
        assert_eq!(matches(pattern, message), expected, "{pattern}");
    }
    assert!(!matches("{ $.a = b }", "not json"));
    assert!(!matches("{ $.a = b }", "prefix {\"a\":\"b\"}"));
    assert!(!matches("{ $.a NOT EXISTS }", "[1"));
}

#[test]
fn json_refusals() {
    assert_eq!(
        refused("{ $.a = 1"),
        "Invalid filter pattern: If a filter pattern starts with '{' it must end with '}'"
    );
    for bad in [
        "{}",
        "{ $ = 1 }",
        "{ $. = 1 }",
        "{ $.a }",
        "{ $.a = }",
        "{ $.a > \"x\" }",
        "{ $.a > x }",
        "{ $.a IS NOT NULL }",
        "{ $.a EXISTS }",
        "{ $.a = 1 & $.b = 2 }",
        "{ $.a = 1 && }",
        "{ ($.a = 1 }",
        "{ $.a[x] = 1 }",
        "{ $.a[*][*] = 1 }",
        "{ $.*=1 || $.*=2 || $.*=3 || $.*=4 }",
        "{ $.a = 1 } }",
        "{ $.a = %a% || $.a = %b% || $.a = %c% }",
    ] {
        refused(bad);
    }
    let deep = format!("{{{}$.a=1{}}}", "(".repeat(40), ")".repeat(40));
    assert!(refused(&deep).contains("nested deeper"));
    assert!(refused(&"a".repeat(1025)).contains("longer"));
}

const ACCESS: &str =
    r#"127.0.0.1 Prod frank [10/Oct/2000:13:25:15 -0700] "GET /index.html HTTP/1.0" 404 1534"#;

#[test]
fn space_delimited_examples_of_the_guide() {
    for pattern in [
        r"[ip=%127\.0\.0\.[1-9]%, user, username, timestamp, request =*.html*, status_code = 4*, bytes]",
        "[..., request =*.html*, status_code = 4*, bytes]",
        "[ip, user, username, timestamp, request =*.html*, status_code = 404 || status_code = 410, bytes]",
        "[ip, user, username, timestamp, request, status_code = 4*, bytes > 1000]",
        "[ip, ..., bytes >= 1.534e3]",
        "[ip, ...]",
    ] {
        assert!(matches(pattern, ACCESS), "{pattern}");
    }
    for pattern in [
        "[ip, user, username, timestamp, request, status_code = 5*, bytes]",
        "[..., status_code = 404, bytes > 1534]",
        "[a, b, c, d, e, f, g, h]",
        "[a, b, c, d, e, f, g, ..., h]",
    ] {
        assert!(!matches(pattern, ACCESS), "{pattern}");
    }
    let log = [
        "INFO 09/25/2014 12:00:00 GET /service/resource/67 1200",
        "INFO 09/25/2014 12:00:01 POST /service/resource/67/part/111 1310",
        "WARNING 09/25/2014 12:00:02 Invalid user request",
        "ERROR 09/25/2014 12:00:02 Failed to process request",
    ];
    assert_eq!(select("[w1=ERROR, w2]", &log), &log[3..]);
    assert_eq!(select("[w1=ERROR || w1=WARNING, w2]", &log), &log[2..]);
    assert_eq!(select("[w1!=ERROR && w1!=WARNING, w2]", &log), &log[..2]);
    assert_eq!(select("[w1=ERROR]", &log), [""; 0]);
    assert_eq!(
        select("[logLevel, date, time, method, url=%/service/resource/[0-9]+$%, response_time]", &log),
        &log[..1]
    );
    assert_eq!(
        select(
            "[logLevel, date, time, method, url=%/service/resource/[0-9]+/part/[0-9]+$%, response_time]",
            &log
        ),
        &log[1..2]
    );
}

#[test]
fn space_delimited_refusals() {
    for bad in [
        "[]",
        "[a",
        "[a b]",
        "[..., ...]",
        "[a=1 && b=2]",
        "[a > x]",
        "[a,]",
        "[=1]",
        "[a=1]]",
        "[a, ..., b, ...]",
    ] {
        refused(bad);
    }
}

#[test]
fn extracted_values_are_named_like_the_service_names_them() {
    let extract =
        |pattern: &str, message: &str| FilterPattern::parse(pattern).expect("pattern").extract(message);
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(
        extract("[ip, user, ..., request, status=4*, bytes]", ACCESS),
        Some(vec![
            pair("$ip", "127.0.0.1"),
            pair("$user", "Prod"),
            pair("$request", "GET /index.html HTTP/1.0"),
            pair("$status", "404"),
            pair("$bytes", "1534"),
        ])
    );
    assert_eq!(extract("[ip, status=5*]", ACCESS), None);
    assert_eq!(
        extract("{ $.user.id = 1 && $.users[0].email = * && $.user.id > 0 }", USERS),
        Some(vec![pair("$.user.id", "1"), pair("$.users[0].email", "John.Doe@example.com"),])
    );
    assert_eq!(extract("GET", ACCESS), Some(vec![]));
}

#[test]
fn a_message_of_unclosed_brackets_takes_linear_time() {
    // Quadratic work on this would take hours; the test's own time limit is the assertion.
    let message = "[ ".repeat(500_000);
    assert!(matches("[..., last]", &message));
    let stars = "a".repeat(1_000_000);
    assert!(!matches(&format!("[f={}b]", "*a".repeat(400)), &stars));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_parsed_or_refused(pattern in "\\PC{0,80}", message in "\\PC{0,80}") {
        if let Ok(pattern) = FilterPattern::parse(&pattern) {
            let matched = pattern.matches(&message);
            prop_assert_eq!(matched, pattern.extract(&message).is_some());
        }
    }

    #[test]
    fn any_text_of_the_languages_own_characters_is_parsed_or_refused(
        pattern in r#"[\[{]?[ $.\[\]{}()a-c0-2*"'%=!<>&|,?\\-]{0,60}(IS NULL|NOT EXISTS)?[\]}]?"#,
        message in r#"[ \[\]{}"':,a-c0-2\\]{0,40}"#,
    ) {
        if let Ok(pattern) = FilterPattern::parse(&pattern) {
            let matched = pattern.matches(&message);
            prop_assert_eq!(matched, pattern.extract(&message).is_some());
        }
    }

    #[test]
    fn globs_agree_with_regular_expressions(glob in "[ab*]{1,8}", text in "[ab]{0,10}") {
        let regex = regex::Regex::new(&format!("^{}$", glob.replace('*', ".*"))).expect("regex");
        // The single field takes the whole event when it is one word.
        prop_assume!(!text.is_empty());
        prop_assert_eq!(matches(&format!("[w=\"{glob}\"]"), &text), regex.is_match(&text));
    }
}
