//! `src/generated.rs`: the enum of services and what the models say of each as a whole.

use anyhow::Context;
use proc_macro2::TokenStream;
use quote::{format_ident, quote};

use super::Service;

/// The variant of `aws_api::Service` for a module: `ecs` → `Ecs`.
pub fn variant(module: &str) -> String {
    module
        .split(['-', '_'])
        .map(|word| {
            let mut letters = word.chars();
            let first = letters.next().map(|c| c.to_ascii_uppercase());
            first.into_iter().chain(letters).collect::<String>()
        })
        .collect()
}

pub fn emit(services: &[Service]) -> anyhow::Result<TokenStream> {
    let (mut variants, mut rows, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for service in services {
        let metadata = &service.model.metadata;
        let ident = format_ident!("{}", variant(&service.module));
        let module = format_ident!("{}", service.module);
        let name = &service.module;
        let endpoint_prefix = &metadata.endpoint_prefix;
        let signing_name = metadata.signing_name.as_ref().unwrap_or(endpoint_prefix);
        let api_version = &metadata.api_version;
        let protocol = match (metadata.protocol.as_str(), metadata.json_version.as_deref()) {
            ("json", Some("1.0")) => quote! { Protocol::Json10 },
            ("json", Some("1.1")) => quote! { Protocol::Json11 },
            ("query", _) => quote! { Protocol::Query },
            (other, _) => anyhow::bail!("{name} speaks {other}, which is not generated"),
        };
        let target_prefix = optional(&metadata.target_prefix);
        let xml_namespace = optional(&metadata.xml_namespace);
        if metadata.protocol == "query" {
            refuse_unwritten_xml(service)?;
        }
        let max_body = proc_macro2::Literal::usize_unsuffixed(service.settings.max_body);
        let validation = &service.settings.validation;
        let code = &validation.code;
        let wording = format_ident!("{}", validation.wording);
        let enforced = |constraint: &str| validation.enforced.contains(constraint);
        let (length, range, pattern, values, required) = (
            enforced("length"),
            enforced("range"),
            enforced("pattern"),
            enforced("enum"),
            enforced("required"),
        );
        let comment = format!(" `{}`, API version {api_version}.", service.module);
        variants.push(quote! { #[doc = #comment] #ident });
        all.push(quote! { Self::#ident });
        rows.push(quote! {
            Self::#ident => {
                const INFO: ServiceInfo = ServiceInfo {
                    name: #name,
                    endpoint_prefix: #endpoint_prefix,
                    signing_name: #signing_name,
                    target_prefix: #target_prefix,
                    api_version: #api_version,
                    xml_namespace: #xml_namespace,
                    protocol: #protocol,
                    max_body: #max_body,
                    operations: crate::#module::OPERATIONS,
                    validation: Rules {
                        code: #code,
                        wording: Wording::#wording,
                        length: #length,
                        range: #range,
                        pattern: #pattern,
                        values: #values,
                        required: #required,
                    },
                };
                &INFO
            }
        });
    }
    services.first().context("the data file names no service")?;
    Ok(quote! {
        use crate::protocol::Protocol;
        use crate::service::ServiceInfo;
        use crate::validate::{Rules, Wording};

        /// A service whose API is (in part) served.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Service { #(#variants,)* }

        impl Service {
            /// All of them.
            pub const ALL: &'static [Self] = &[#(#all),*];

            /// What the service's model says of it as a whole.
            pub const fn info(self) -> &'static ServiceInfo {
                match self { #(#rows)* }
            }
        }
    })
}

fn optional(text: &Option<String>) -> TokenStream {
    match text {
        Some(text) => quote! { Some(#text) },
        None => quote! { None },
    }
}

/// `aws_api::query` writes structures, lists and plain scalars.
fn refuse_unwritten_xml(service: &Service) -> anyhow::Result<()> {
    for name in &service.shapes {
        let kind = service.model.shape(name)?.kind.as_str();
        anyhow::ensure!(
            !matches!(kind, "map" | "timestamp" | "blob"),
            "{}: the XML writer does not know a {kind} ({name})",
            service.module
        );
    }
    Ok(())
}
