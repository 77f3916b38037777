//! Capacity providers and strategies. Coracle has the two that Fargate has.
//!
//! Source: "Amazon ECS clusters for Fargate" in the ECS developer guide and CapacityProviderStrategyItem in the
//! API reference.

use aws_api::Error;
use aws_api::ecs::CapacityProviderStrategyItem;
use model::cluster::StrategyItem;

use super::errors::invalid;

pub(super) const PROVIDERS: [&str; 2] = ["FARGATE", "FARGATE_SPOT"];

const MAX_ITEMS: usize = 20;
const MAX_WEIGHT: i32 = 1_000;
const MAX_BASE: i32 = 100_000;

/// The providers that a cluster shall have.
pub(super) fn checked_providers(names: &[String]) -> Result<Vec<String>, Error> {
    let mut checked: Vec<String> = Vec::new();
    for name in names {
        if !PROVIDERS.contains(&name.as_str()) {
            return Err(invalid(
                "The specified capacity provider was not found. Specify a valid name or ARN and try again.",
            ));
        }
        if checked.contains(name) {
            return Err(invalid("The specified capacity providers contain duplicates."));
        }
        checked.push(name.clone());
    }
    Ok(checked)
}

/// A strategy over the providers that are associated with the cluster.
pub(super) fn checked(
    items: &[CapacityProviderStrategyItem],
    associated: &[String],
) -> Result<Vec<StrategyItem>, Error> {
    if items.len() > MAX_ITEMS {
        return Err(invalid(format!(
            "The specified capacity provider strategy can contain at most {MAX_ITEMS} capacity providers."
        )));
    }
    let mut strategy: Vec<StrategyItem> = Vec::new();
    for item in items {
        let item = StrategyItem {
            capacity_provider: item.capacity_provider.clone(),
            weight: item.weight.unwrap_or(0),
            base: item.base.unwrap_or(0),
        };
        if !associated.contains(&item.capacity_provider) {
            return Err(invalid(
                "The specified capacity provider strategy cannot contain a capacity provider that is not \
                 associated with the cluster.",
            ));
        }
        if strategy.iter().any(|other| other.capacity_provider == item.capacity_provider) {
            return Err(invalid(
                "The specified capacity provider strategy contains duplicate capacity providers.",
            ));
        }
        if !(0..=MAX_WEIGHT).contains(&item.weight) {
            return Err(invalid(format!(
                "The weight of a capacity provider must be between 0 and {MAX_WEIGHT}."
            )));
        }
        if !(0..=MAX_BASE).contains(&item.base) {
            return Err(invalid(format!(
                "The base of a capacity provider must be between 0 and {MAX_BASE}."
            )));
        }
        strategy.push(item);
    }
    if strategy.iter().filter(|item| item.base > 0).count() > 1 {
        return Err(invalid(
            "The specified capacity provider strategy contains multiple capacity providers with a base value \
             defined.",
        ));
    }
    if strategy.len() > 1 && strategy.iter().all(|item| item.weight == 0) {
        return Err(invalid(
            "The specified capacity provider strategy must contain a capacity provider with a weight greater than 0.",
        ));
    }
    Ok(strategy)
}

/// The provider of each of `count` tasks: first the base, then each next one to the provider that is
/// furthest behind its share of the weights.
pub(super) fn distribute(strategy: &[StrategyItem], count: usize) -> Vec<String> {
    let mut providers = Vec::with_capacity(count);
    for item in strategy {
        let base = usize::try_from(item.base).unwrap_or(0).min(count - providers.len());
        providers.extend(std::iter::repeat_n(item.capacity_provider.clone(), base));
    }
    // A single provider takes all, whatever its weight.
    let weights: Vec<u64> = match strategy {
        [_] => vec![1],
        _ => strategy.iter().map(|item| u64::try_from(item.weight).unwrap_or(0)).collect(),
    };
    let mut given = vec![0u64; strategy.len()];
    while providers.len() < count {
        let next = (0..strategy.len())
            .filter(|&i| weights[i] > 0)
            // (given + 1) / weight, compared without division.
            .min_by(|&a, &b| ((given[a] + 1) * weights[b]).cmp(&((given[b] + 1) * weights[a])));
        let Some(next) = next else { break };
        given[next] += 1;
        providers.push(strategy[next].capacity_provider.clone());
    }
    providers
}

pub(super) fn to_wire(strategy: &[StrategyItem]) -> Vec<CapacityProviderStrategyItem> {
    strategy
        .iter()
        .map(|item| CapacityProviderStrategyItem {
            capacity_provider: item.capacity_provider.clone(),
            weight: Some(item.weight),
            base: Some(item.base),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, weight: i32, base: i32) -> CapacityProviderStrategyItem {
        CapacityProviderStrategyItem {
            capacity_provider: name.to_owned(),
            weight: Some(weight),
            base: Some(base),
        }
    }

    #[test]
    fn strategies_keep_the_rules() {
        let both = PROVIDERS.map(str::to_owned).to_vec();
        assert!(checked(&[item("FARGATE", 1, 1), item("FARGATE_SPOT", 3, 0)], &both).is_ok());
        assert!(checked(&[item("FARGATE", 0, 0)], &both).is_ok());
        for (items, want) in [
            (vec![item("EC2", 1, 0)], "not associated with the cluster"),
            (vec![item("FARGATE", 1, 0), item("FARGATE", 1, 0)], "duplicate"),
            (vec![item("FARGATE", 1001, 0)], "between 0 and 1000"),
            (vec![item("FARGATE", 1, -1)], "between 0 and 100000"),
            (
                vec![item("FARGATE", 1, 1), item("FARGATE_SPOT", 1, 1)],
                "multiple capacity providers with a base",
            ),
            (vec![item("FARGATE", 0, 0), item("FARGATE_SPOT", 0, 0)], "weight greater than 0"),
        ] {
            let error = checked(&items, &both).unwrap_err();
            assert!(error.message.contains(want), "{}", error.message);
        }
        assert!(checked_providers(&["FARGATE".to_owned(), "mine".to_owned()]).is_err());
        assert!(checked_providers(&["FARGATE".to_owned(), "FARGATE".to_owned()]).is_err());
    }

    #[test]
    fn tasks_are_spread_by_base_and_weight() {
        let both = PROVIDERS.map(str::to_owned).to_vec();
        for (items, count, want) in [
            (vec![item("FARGATE", 1, 2), item("FARGATE_SPOT", 3, 0)], 10, (4, 6)),
            (vec![item("FARGATE", 1, 0), item("FARGATE_SPOT", 4, 0)], 10, (2, 8)),
            (vec![item("FARGATE", 0, 0), item("FARGATE_SPOT", 1, 0)], 3, (0, 3)),
            (vec![item("FARGATE", 1, 20), item("FARGATE_SPOT", 1, 0)], 5, (5, 0)),
            (vec![item("FARGATE", 0, 0)], 3, (3, 0)),
        ] {
            let given = distribute(&checked(&items, &both).unwrap(), count);
            let on_demand = given.iter().filter(|name| *name == "FARGATE").count();
            assert_eq!((on_demand, given.len() - on_demand), want, "{items:?}");
        }
    }
}
