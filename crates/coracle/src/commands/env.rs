//! `coracle env`: what points an AWS client at the server, for `eval "$(coracle env)"`.

use serde_json::json;

use super::{Context, Output, print};

pub fn main(context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let server = &client.server;
    let variables = [
        ("AWS_ENDPOINT_URL", server.url.as_str()),
        ("AWS_ACCESS_KEY_ID", client.key().id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", client.key().secret.expose()),
        ("AWS_REGION", server.region.as_str()),
        ("AWS_DEFAULT_REGION", server.region.as_str()),
        // StartLiveTail would go to streaming-HOST, which a server at an address does not have.
        ("AWS_DISABLE_HOST_PREFIX_INJECTION", "true"),
        ("CORACLE_ACCOUNT", server.account.as_str()),
        ("CORACLE_REGISTRY", server.registry.as_str()),
        ("CORACLE_SUBNET", server.subnet.as_str()),
        ("CORACLE_SECURITY_GROUP", server.security_group.as_str()),
    ];
    match context.output {
        Output::Text => {
            for (name, value) in variables {
                print::line(format_args!("export {name}={}", quoted(value)))?;
            }
            // A session token of another account's credentials would go along with the key above.
            print::line("unset AWS_SESSION_TOKEN AWS_PROFILE")?;
        }
        Output::Json => {
            let object: serde_json::Map<_, _> =
                variables.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            print::json(&object)?;
        }
    }
    Ok(())
}

/// For a POSIX shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_leave_their_quotes() {
        assert_eq!(quoted("a'; rm -rf /; '"), r"'a'\''; rm -rf /; '\'''");
    }
}
