//! `coracle reset`: empties an ephemeral server.

use serde_json::json;

use super::{Context, Output, print};

pub async fn main(context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    client.post("/_coracle/reset").await?;
    match context.output {
        Output::Text => print::line(format_args!("{} is empty", client.server.url)),
        Output::Json => print::json(&json!({"reset": client.server.url})),
    }
}
