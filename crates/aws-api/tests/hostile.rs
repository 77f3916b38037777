//! No input makes the parsers, validators, the verifier or the decoders panic, or take much.

use aws_api::eventstream::{Decoder, Message};
use aws_api::schema::{Kind, Schema};
use aws_api::sigv4::{SecretKey, Verifier};
use aws_api::{Operation, Protocol, Service, Timestamp, ecr, ecs, logs, validate};
use bytes::Bytes;
use http::Request;
use http::request::Parts;
use proptest::prelude::*;
use serde_json::Value;

/// JSON of any kind, with the models' member names in it.
fn json(names: Vec<&'static str>) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[A-Z_]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        let name = prop::sample::select(names.clone()).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The member names in a schema.
fn names(schema: &'static Schema) -> Vec<&'static str> {
    let mut names = vec!["unknown"];
    let mut open = vec![schema];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(schema) = open.pop() {
        if !seen.insert(schema.name) {
            continue;
        }
        match schema.kind {
            Kind::Structure { members } => {
                names.extend(members.iter().map(|member| member.name));
                open.extend(members.iter().map(|member| member.schema));
            }
            Kind::List { member, .. } => open.push(member),
            Kind::Map { value, .. } => open.push(value),
            _ => {}
        }
    }
    names
}

/// What validation lets through fits the generated type.
fn check<O: Operation>(value: &Value) -> Result<(), TestCaseError> {
    let mut rules = Vec::new();
    for service in Service::ALL {
        rules.push(&service.info().validation);
    }
    for rules in rules {
        if let Ok(value) = validate::parse(rules, O::INPUT_SCHEMA, value.to_string().as_bytes()) {
            let input: Result<O::Input, _> = serde_json::from_value(value.clone());
            prop_assert!(input.is_ok(), "{:?} of {value}", input.err());
        }
    }
    Ok(())
}

/// A value that fits a schema, except for its constraints.
fn fitting(schema: &'static Schema, depth: u32) -> BoxedStrategy<Value> {
    match schema.kind {
        Kind::Structure { members } => {
            let members: Vec<_> = members
                .iter()
                .filter(|member| member.required || depth > 0)
                .map(|member| {
                    let value = fitting(member.schema, depth.saturating_sub(1))
                        .prop_map(|value| Some((member.name.to_owned(), value)));
                    let share = if member.required { 0 } else { 4 };
                    prop_oneof![1 => value, share => Just(None)]
                })
                .collect();
            members.prop_map(|members| Value::Object(members.into_iter().flatten().collect())).boxed()
        }
        Kind::List { member, .. } => {
            prop::collection::vec(fitting(member, depth), 0..3).prop_map(Value::from).boxed()
        }
        Kind::Map { value, .. } => prop::collection::btree_map("[a-z]{1,4}", fitting(value, depth), 0..3)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
            .boxed(),
        Kind::String { values, .. } if !values.is_empty() => {
            prop::sample::select(values).prop_map(Value::from).boxed()
        }
        Kind::String { .. } => "[a-z0-9]{1,12}".prop_map(Value::from).boxed(),
        Kind::Integer { .. } => any::<i32>().prop_map(Value::from).boxed(),
        Kind::Long { .. } => any::<i64>().prop_map(Value::from).boxed(),
        Kind::Double { .. } => (-1e9..1e9).prop_map(Value::from).boxed(),
        Kind::Boolean => any::<bool>().prop_map(Value::from).boxed(),
        Kind::Timestamp => {
            (0..2_000_000_000_i64).prop_map(|millis| Value::from(millis as f64 / 1000.0)).boxed()
        }
        Kind::Blob { .. } => Just(Value::from("AAEC")).boxed(),
        Kind::Document => Just(Value::from("x")).boxed(),
    }
}

fn parts(method: &str, target: &str, headers: &[(String, Vec<u8>)]) -> Option<Parts> {
    let mut builder = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        builder = builder.header(name.as_str(), value.as_slice());
    }
    Some(builder.body(()).ok()?.into_parts().0)
}

/// Headers that the crate reads, with values that look right and ones that do not.
fn headers() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let name = prop::sample::select(vec![
        "authorization",
        "content-type",
        "date",
        "host",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-decoded-content-length",
        "x-amz-security-token",
        "x-amz-target",
    ]);
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..24),
        prop::sample::select(vec![
            "20260101T000000Z",
            "99999999T999999Z",
            "Thu, 01 Jan 2026 00:00:00 GMT",
            "AWS4-HMAC-SHA256 Credential=A/20260101/r/ecs/aws4_request, SignedHeaders=host, Signature=0",
            "AWS4-HMAC-SHA256 Credential=////, SignedHeaders=;;, Signature==",
            "Logs_20140328.PutLogEvents",
            "application/x-www-form-urlencoded",
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "UNSIGNED-PAYLOAD",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop::collection::vec((name.prop_map(str::to_owned), value), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_json_is_refused_or_fits(value in json(names(
        <ecs::operation::RegisterTaskDefinition as Operation>::INPUT_SCHEMA,
    ))) {
        check::<ecs::operation::RegisterTaskDefinition>(&value)?;
        check::<ecs::operation::RunTask>(&value)?;
        check::<logs::operation::PutLogEvents>(&value)?;
        check::<ecr::operation::UploadLayerPart>(&value)?;
    }

    #[test]
    fn fitting_json_goes_there_and_back(
        value in fitting(<ecs::operation::RegisterTaskDefinition as Operation>::INPUT_SCHEMA, 4)
    ) {
        type Input = ecs::RegisterTaskDefinitionRequest;
        let schema = <ecs::operation::RegisterTaskDefinition as Operation>::INPUT_SCHEMA;
        let rules = &Service::Ecs.info().validation;
        let parsed = validate::parse(rules, schema, value.to_string().as_bytes());
        let parsed = parsed.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let input: Input = serde_json::from_value(parsed).unwrap();
        prop_assert_eq!(serde_json::to_value(input).unwrap(), value);
    }

    #[test]
    fn bytes_are_no_json(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let rules = &Service::Ecs.info().validation;
        let schema = <ecs::operation::RunTask as Operation>::INPUT_SCHEMA;
        let _ = validate::parse(rules, schema, &body);
    }

    #[test]
    fn hostile_requests_are_routed_or_refused(
        method in prop::sample::select(vec!["GET", "POST", "PUT"]),
        target in "/[!-~]{0,40}",
        query in "(Action=[A-Z]{1,8}|X-Amz-[A-Za-z]{1,12}=[!-~]{0,12}|&){0,6}",
        headers in headers(),
        body in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        if let Some(parts) = parts(method, &format!("{target}?{query}"), &headers) {
            let body = Bytes::from(body);
            let lookup = |_: &str| Some(SecretKey::from("secret"));
            let now = Timestamp::from_millis(1_767_225_600_000);
            prop_assert!(Verifier::default().verify(&parts, &body, now, lookup).is_err());
            match aws_api::route(&parts, &body) {
                Ok(routed) => {
                    let _ = routed.decode::<logs::operation::PutLogEvents>(&body);
                }
                Err(error) => {
                    let response = Protocol::of(&parts).encode_error(&error, "id");
                    prop_assert!(response.status().is_client_error());
                }
            }
        }
    }

    #[test]
    fn hostile_streams_are_cut_or_refused(
        mut stream in prop::collection::vec(any::<u8>(), 0..200),
        valid in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        if valid {
            stream = Message::initial_response().encode().unwrap().to_vec();
        }
        for (index, byte) in flips {
            if !stream.is_empty() {
                let index = index.index(stream.len());
                stream[index] = byte;
            }
        }
        let mut decoder = Decoder::default();
        decoder.push(&stream);
        while let Ok(Some(_)) = decoder.next_message() {}
    }

    #[test]
    fn messages_go_there_and_back(
        headers in prop::collection::vec((".{1,20}", ".{0,40}"), 0..4),
        payload in prop::collection::vec(any::<u8>(), 0..200),
        cut in any::<prop::sample::Index>(),
    ) {
        let message = Message { headers, payload: payload.into() };
        let bytes = message.encode().unwrap();
        let (first, second) = bytes.split_at(cut.index(bytes.len()));
        let mut decoder = Decoder::default();
        decoder.push(first);
        prop_assert_eq!(decoder.next_message(), Ok(None));
        decoder.push(second);
        prop_assert_eq!(decoder.next_message(), Ok(Some(message)));
        prop_assert_eq!(decoder.next_message(), Ok(None));
    }
}

#[test]
fn every_pattern_compiles() {
    for service in Service::ALL {
        for operation in service.operations() {
            let mut open: Vec<&'static Schema> = operation.input.into_iter().collect();
            while let Some(schema) = open.pop() {
                match schema.kind {
                    Kind::Structure { members } => open.extend(members.iter().map(|m| m.schema)),
                    Kind::List { member, .. } => open.push(member),
                    Kind::Map { key, value, .. } => open.extend([key, value]),
                    Kind::String { pattern: Some(pattern), .. } => {
                        let regex = regex::Regex::new(pattern);
                        assert!(regex.is_ok(), "{}: {pattern}", schema.name);
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn deep_and_wide_bodies_are_refused() {
    let rules = &Service::Ecs.info().validation;
    let schema = <ecs::operation::RegisterTaskDefinition as Operation>::INPUT_SCHEMA;
    let deep = format!("{{\"unknown\":{}", "[".repeat(100_000));
    let wide = format!("{{\"containerDefinitions\":[{}{{}}]}}", "{},".repeat(300_000));
    let long = format!("{{\"family\":\"a\",\"unknown\":[{}0]}}", "0,".repeat(300_000));
    for (body, ok) in [(deep, false), (wide, false), (long, true)] {
        let outcome = validate::parse(rules, schema, body.as_bytes());
        match outcome {
            // Ignored members cost nothing; a required one is missing.
            Err(error) if ok => assert_eq!(error.code, "InvalidParameterException"),
            outcome => assert_eq!(outcome.unwrap_err().code, "SerializationException"),
        }
    }
}
