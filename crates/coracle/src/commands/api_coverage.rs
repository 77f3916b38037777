//! `coracle api-coverage`: how much of AWS's APIs is served. Needs no server.

use anyhow::bail;
use aws_api::Service;
use serde_json::json;

use super::{Context, Output, print};

#[derive(Clone, Debug, clap::Args)]
pub struct CoverageArgs {
    /// Only this service, such as ecs.
    #[arg(long)]
    service: Option<String>,
    /// Every operation, not only their number.
    #[arg(long)]
    all: bool,
}

pub fn main(context: &Context, args: &CoverageArgs) -> anyhow::Result<()> {
    let mut services: Vec<Service> = Service::ALL.to_vec();
    if let Some(wanted) = &args.service {
        services.retain(|service| service.info().name == wanted);
        if services.is_empty() {
            let names: Vec<&str> = Service::ALL.iter().map(|service| service.info().name).collect();
            bail!("Coracle does not know the service {wanted}; it serves {}", names.join(", "));
        }
    }
    match context.output {
        Output::Json => {
            let object: serde_json::Map<_, _> =
                services.iter().map(|service| as_json(*service, args.all)).collect();
            print::json(&object)
        }
        Output::Text if args.all => {
            let rows = services.iter().flat_map(|service| {
                service.operations().iter().map(|operation| {
                    let served = if operation.served() { "yes" } else { "-" };
                    [service.info().name, operation.name, served].map(str::to_owned).to_vec()
                })
            });
            print::table(&["SERVICE", "OPERATION", "SERVED"], rows.collect())
        }
        Output::Text => {
            let rows = services.iter().map(|service| {
                let total = service.operations().len();
                let count = served(*service);
                let share = format!("{}%", (count * 100).checked_div(total).unwrap_or_default());
                vec![service.info().name.to_owned(), count.to_string(), total.to_string(), share]
            });
            print::table(&["SERVICE", "SERVED", "TOTAL", "SHARE"], rows.collect())
        }
    }
}

fn served(service: Service) -> usize {
    service.operations().iter().filter(|operation| operation.served()).count()
}

fn as_json(service: Service, all: bool) -> (String, serde_json::Value) {
    let mut value = json!({"served": served(service), "total": service.operations().len()});
    if all {
        let operations = service.operations().iter().map(|o| json!({"name": o.name, "served": o.served()}));
        value["operations"] = operations.collect();
    }
    (service.info().name.to_owned(), value)
}
