//! Structures, event streams and the constants of enumerations.

use std::collections::BTreeSet;

use anyhow::{bail, ensure};
use proc_macro2::TokenStream;
use quote::quote;

use super::Service;
use super::model::Shape;

/// Names that a generated type must not shadow, as the generated code uses them.
const TAKEN: [&str; 12] = [
    "BTreeMap",
    "Blob",
    "Clone",
    "Debug",
    "Default",
    "Error",
    "Option",
    "Sensitive",
    "String",
    "Timestamp",
    "Value",
    "Vec",
];

pub fn emit(service: &Service) -> anyhow::Result<TokenStream> {
    let mut items = Vec::new();
    for name in &service.shapes {
        let shape = service.model.shape(name)?;
        // Exceptions occur here only as members of event streams; `errors` has them.
        if shape.kind != "structure" || shape.exception || shape.document {
            continue;
        }
        ensure!(
            !TAKEN.contains(&service.names.type_ident(name).to_string().as_str()),
            "the shape {name} hides a name that generated code uses"
        );
        items.push(if shape.eventstream {
            event_stream(service, name, shape)?
        } else {
            structure(service, name, shape)?
        });
    }
    items.extend(missing_messages(service)?);
    Ok(quote! {
        #[allow(unused_imports)]
        use std::collections::BTreeMap;
        #[allow(unused_imports)]
        use crate::{Blob, Sensitive, Timestamp};
        use serde::{Deserialize, Serialize};

        #(#items)*
    })
}

fn structure(service: &Service, name: &str, shape: &Shape) -> anyhow::Result<TokenStream> {
    let ident = service.names.type_ident(name);
    let mut fields = Vec::new();
    for (member, target) in shape.members() {
        // A stream is the body itself, not a member of it.
        if service.model.shape(target)?.eventstream {
            continue;
        }
        ensure!(
            !contains_inline(service, target, name, &mut BTreeSet::new())?,
            "{name}.{member} contains {name} itself: generate a Box"
        );
        let field = service.names.snake_ident(member);
        let mut kind = rust_type(service, target)?;
        let listed = service.settings.sensitive_members.contains(&format!("{name}.{member}"));
        if listed || service.model.shape(target)?.sensitive {
            kind = quote! { Sensitive<#kind> };
        }
        fields.push(if shape.required.contains(member) {
            quote! { #[serde(rename = #member, default)] pub #field: #kind }
        } else {
            quote! {
                #[serde(rename = #member, default, skip_serializing_if = "Option::is_none")]
                pub #field: Option<#kind>
            }
        });
    }
    let comment = format!(" The shape `{name}`.");
    Ok(quote! {
        #[doc = #comment]
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        pub struct #ident { #(#fields,)* }
    })
}

/// An enum with one variant per event; exceptions are sent with `eventstream::Message::exception`.
fn event_stream(service: &Service, name: &str, shape: &Shape) -> anyhow::Result<TokenStream> {
    let ident = service.names.type_ident(name);
    let (mut variants, mut kinds, mut payloads, mut parses) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (member, target) in shape.members() {
        if service.model.shape(target)?.exception {
            continue;
        }
        let variant = service.names.type_ident(member);
        let payload = rust_type(service, target)?;
        variants.push(quote! { #variant(#payload) });
        kinds.push(quote! { Self::#variant(_) => #member });
        payloads.push(quote! { Self::#variant(event) => serde_json::to_vec(event) });
        parses.push(quote! {
            #member => serde_json::from_slice(payload).map(|event| Some(Self::#variant(event)))
        });
    }
    let comment = format!(" One event of the stream `{name}`.");
    Ok(quote! {
        #[doc = #comment]
        #[derive(Clone, Debug, PartialEq)]
        pub enum #ident { #(#variants,)* }

        impl crate::eventstream::Event for #ident {
            fn event_type(&self) -> &'static str {
                match self { #(#kinds,)* }
            }
            fn payload(&self) -> Result<Vec<u8>, serde_json::Error> {
                match self { #(#payloads,)* }
            }
            fn from_payload(
                event_type: &str,
                payload: &[u8],
            ) -> Result<Option<Self>, serde_json::Error> {
                match event_type { #(#parses,)* _ => Ok(None) }
            }
        }
    })
}

/// An empty structure for each side of an operation that the model gives no shape.
fn missing_messages(service: &Service) -> anyhow::Result<Vec<TokenStream>> {
    let mut items = Vec::new();
    for name in &service.settings.operations {
        let operation = &service.model.operations[name];
        for (side, suffix) in [(&operation.input, "Request"), (&operation.output, "Response")] {
            if side.is_some() {
                continue;
            }
            let message = format!("{name}{suffix}");
            if service.shapes.contains(&message) {
                bail!("{message} is a shape, but not that of {name}");
            }
            let ident = service.names.type_ident(&message);
            let comment = format!(" `{name}` has no such shape: an empty message.");
            items.push(quote! {
                #[doc = #comment]
                #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
                pub struct #ident {}
            });
        }
    }
    Ok(items)
}

/// The Rust type of a member whose shape is `name`.
fn rust_type(service: &Service, name: &str) -> anyhow::Result<TokenStream> {
    let shape = service.model.shape(name)?;
    let part = |reference: &Option<super::model::Reference>| match reference {
        Some(reference) => rust_type(service, &reference.shape),
        None => bail!("{name} lacks its member's shape"),
    };
    Ok(match shape.kind.as_str() {
        "structure" if shape.document => quote! { serde_json::Value },
        "structure" => {
            let ident = service.names.type_ident(name);
            quote! { #ident }
        }
        "list" => {
            let member = part(&shape.member)?;
            quote! { Vec<#member> }
        }
        "map" => {
            let value = part(&shape.value)?;
            quote! { BTreeMap<String, #value> }
        }
        "string" => quote! { String },
        "integer" => quote! { i32 },
        "long" => quote! { i64 },
        "boolean" => quote! { bool },
        "double" | "float" => quote! { f64 },
        "timestamp" => quote! { Timestamp },
        "blob" => quote! { Blob },
        other => bail!("{name} is of the unknown type {other}"),
    })
}

/// Whether a value of the shape `from` holds one of `wanted` without a Vec or map between.
fn contains_inline(
    service: &Service,
    from: &str,
    wanted: &str,
    seen: &mut BTreeSet<String>,
) -> anyhow::Result<bool> {
    if from == wanted {
        return Ok(true);
    }
    let shape = service.model.shape(from)?;
    if shape.kind != "structure" || !seen.insert(from.to_owned()) {
        return Ok(false);
    }
    for (_, target) in shape.members() {
        if contains_inline(service, target, wanted, seen)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `values::launch_type::FARGATE` and the list of all, `values::launch_type::MEMBERS`.
pub fn emit_values(service: &Service) -> anyhow::Result<TokenStream> {
    let mut modules = Vec::new();
    for name in &service.shapes {
        let shape = service.model.shape(name)?;
        if shape.kind != "string" || shape.values.is_empty() {
            continue;
        }
        let ident = service.names.snake_ident(name);
        let names: Vec<_> = shape.values.iter().map(|v| service.names.screaming_ident(v)).collect();
        let distinct: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
        ensure!(
            distinct.len() == names.len() && !distinct.contains("MEMBERS"),
            "two values of {name} have one name in Rust"
        );
        let values = &shape.values;
        let comment = format!(" The values of `{name}`.");
        modules.push(quote! {
            #[doc = #comment]
            pub mod #ident {
                #(pub const #names: &str = #values;)*
                /// All of them, in the model's order.
                pub const MEMBERS: &[&str] = &[#(#names),*];
            }
        });
    }
    Ok(quote! {
        /// The values of the enumerations, which are strings on the wire and in the types.
        pub mod values { #(#modules)* }
    })
}
