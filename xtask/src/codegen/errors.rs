//! A constructor for every error shape.

use proc_macro2::TokenStream;
use quote::quote;

use super::Service;

pub fn emit(service: &Service) -> anyhow::Result<TokenStream> {
    let mut items = Vec::new();
    for (name, shape) in service.model.shapes.iter().filter(|(_, shape)| shape.exception) {
        let declared = shape.error.as_ref();
        let code = declared.and_then(|e| e.code.as_deref()).unwrap_or(name);
        // The JSON protocols leave the status to the `fault` trait: 400 or 500.
        let status = service
            .settings
            .error_statuses
            .get(name)
            .copied()
            .or_else(|| declared.and_then(|e| e.http_status_code))
            .unwrap_or(if shape.fault { 500 } else { 400 });
        let extra: Vec<&str> = shape
            .members()
            .map(|(member, _)| member)
            .filter(|member| !member.eq_ignore_ascii_case("message"))
            .collect();
        let mut comment = format!(" `{code}`, HTTP {status}.");
        if !extra.is_empty() {
            comment.push_str(&format!(" Further fields: `{}`.", extra.join("`, `")));
        }
        let ident = service.names.snake_ident(name);
        items.push(quote! {
            #[doc = #comment]
            pub fn #ident(message: impl Into<String>) -> Error {
                Error::new(#code, #status, message)
            }
        });
    }
    Ok(quote! {
        /// The service's own errors. Those that every service has are in [`crate::error::common`].
        pub mod error {
            use crate::Error;
            #(#items)*
        }
    })
}
