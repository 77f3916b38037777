//! One unit struct per served operation, and the table of all operations.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};

use super::Service;

pub fn emit(service: &Service) -> anyhow::Result<TokenStream> {
    let variant = format_ident!("{}", super::services::variant(&service.module));
    let (mut items, mut rows) = (Vec::new(), Vec::new());
    for (name, operation) in &service.model.operations {
        if !service.settings.operations.contains(name) {
            rows.push(quote! { OperationInfo { name: #name, input: None } });
            continue;
        }
        let message = |shape: &Option<super::model::Reference>, suffix: &str| match shape {
            Some(reference) => reference.shape.clone(),
            None => format!("{name}{suffix}"),
        };
        let ident = service.names.type_ident(name);
        let input = service.names.type_ident(&message(&operation.input, "Request"));
        let output = service.names.type_ident(&message(&operation.output, "Response"));
        let schema = match &operation.input {
            Some(reference) => {
                let schema = service.names.screaming_ident(&reference.shape);
                quote! { &super::schema::#schema }
            }
            None => quote! { &crate::schema::EMPTY },
        };
        let mut comment = format!(" `{name}`.");
        if !operation.errors.is_empty() {
            let errors: Vec<_> = operation.errors.iter().map(|e| format!("`{}`", e.shape)).collect();
            comment = format!(" `{name}`; errors of its own: {}.", errors.join(", "));
        }
        items.push(quote! {
            #[doc = #comment]
            #[derive(Clone, Copy, Debug)]
            pub struct #ident;

            impl Operation for #ident {
                const SERVICE: Service = Service::#variant;
                const NAME: &'static str = #name;
                const INPUT_SCHEMA: &'static Schema = #schema;
                type Input = super::#input;
                type Output = super::#output;
            }
        });
        rows.push(quote! {
            OperationInfo {
                name: #name,
                input: Some(<operation::#ident as crate::Operation>::INPUT_SCHEMA),
            }
        });
    }
    Ok(quote! {
        /// The served operations.
        pub mod operation {
            use crate::schema::Schema;
            use crate::{Operation, Service};
            #(#items)*
        }

        use crate::OperationInfo;

        /// Every operation of the service, served or not, in name order.
        pub(crate) static OPERATIONS: &[OperationInfo] = &[#(#rows),*];
    })
}
