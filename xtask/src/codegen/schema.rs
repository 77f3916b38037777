//! The constraint tables of the inputs.

use anyhow::bail;
use proc_macro2::TokenStream;
use quote::quote;

use super::Service;
use super::model::{Reference, Shape};

pub fn emit(service: &Service) -> anyhow::Result<TokenStream> {
    let mut items = Vec::new();
    for name in &service.input_shapes {
        let ident = service.names.screaming_ident(name);
        let kind = kind(service, name, service.model.shape(name)?)?;
        items.push(quote! {
            pub static #ident: Schema = Schema { name: #name, kind: #kind };
        });
    }
    Ok(quote! {
        /// What the model demands of each input shape.
        pub(crate) mod schema {
            #[allow(unused_imports)]
            use crate::schema::{Kind, Member, Schema};
            #(#items)*
        }
    })
}

fn kind(service: &Service, name: &str, shape: &Shape) -> anyhow::Result<TokenStream> {
    let reference = |part: &Option<Reference>| match part {
        Some(part) => {
            let ident = service.names.screaming_ident(&part.shape);
            Ok(quote! { &#ident })
        }
        None => bail!("{name} lacks its member's shape"),
    };
    let (min, max) = (optional(shape.min, whole), optional(shape.max, whole));
    Ok(match shape.kind.as_str() {
        "structure" if shape.document => quote! { Kind::Document },
        "structure" => {
            let mut members = Vec::new();
            for (member, target) in shape.members() {
                let target = service.names.screaming_ident(target);
                let required = shape.required.contains(member);
                members.push(quote! {
                    Member { name: #member, required: #required, schema: &#target }
                });
            }
            quote! { Kind::Structure { members: &[#(#members),*] } }
        }
        "list" => {
            let member = reference(&shape.member)?;
            quote! { Kind::List { member: #member, min: #min, max: #max } }
        }
        "map" => {
            let (key, value) = (reference(&shape.key)?, reference(&shape.value)?);
            quote! { Kind::Map { key: #key, value: #value, min: #min, max: #max } }
        }
        "string" => {
            let pattern = match service.settings.patterns.get(name) {
                Some(exception) => exception.as_ref(),
                None => shape.pattern.as_ref(),
            };
            let pattern = match pattern {
                Some(pattern) => quote! { Some(#pattern) },
                None => quote! { None },
            };
            let values = if shape.values.is_empty() {
                quote! { &[] }
            } else {
                let module = service.names.snake_ident(name);
                quote! { super::values::#module::MEMBERS }
            };
            quote! {
                Kind::String { min: #min, max: #max, pattern: #pattern, values: #values }
            }
        }
        "integer" => quote! { Kind::Integer { min: #min, max: #max } },
        "long" => quote! { Kind::Long { min: #min, max: #max } },
        "double" | "float" => {
            let (min, max) = (optional(shape.min, real), optional(shape.max, real));
            quote! { Kind::Double { min: #min, max: #max } }
        }
        "boolean" => quote! { Kind::Boolean },
        "timestamp" => quote! { Kind::Timestamp },
        "blob" => quote! { Kind::Blob { min: #min, max: #max } },
        other => bail!("{name} is of the unknown type {other}"),
    })
}

fn optional(bound: Option<f64>, literal: fn(f64) -> TokenStream) -> TokenStream {
    match bound.map(literal) {
        Some(bound) => quote! { Some(#bound) },
        None => quote! { None },
    }
}

fn whole(bound: f64) -> TokenStream {
    let bound = proc_macro2::Literal::i64_unsuffixed(bound as i64);
    quote! { #bound }
}

fn real(bound: f64) -> TokenStream {
    let bound = proc_macro2::Literal::f64_unsuffixed(bound);
    quote! { #bound }
}
