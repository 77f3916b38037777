//! Clusters and capacity providers.

use serde_json::json;

use super::{assert_error, call, definition, fixture, run_request};

#[tokio::test]
async fn a_cluster_lives_from_create_to_delete() {
    let f = fixture().await;
    let create = json!({
        "clusterName": "prod",
        "tags": [{ "key": "team", "value": "a" }],
        "settings": [{ "name": "containerInsights", "value": "enabled" }],
        "capacityProviders": ["FARGATE", "FARGATE_SPOT"],
        "defaultCapacityProviderStrategy": [{ "capacityProvider": "FARGATE", "weight": 1, "base": 1 }],
        "configuration": { "executeCommandConfiguration": { "logging": "DEFAULT" } },
    });
    let created = call!(f, create_cluster, create.clone()).unwrap().cluster.unwrap();
    assert_eq!(created.cluster_arn.as_deref(), Some("arn:aws:ecs:eu-central-1:123456789012:cluster/prod"));
    assert_eq!(created.status.as_deref(), Some("ACTIVE"));
    assert_eq!(created.tags.as_ref().unwrap().len(), 1);
    assert_eq!(created.settings.as_ref().unwrap()[0].value.as_deref(), Some("enabled"));
    assert!(created.configuration.is_some());
    // The same again is the same cluster; something else is refused.
    assert_eq!(call!(f, create_cluster, create).unwrap().cluster.unwrap(), created);
    assert!(call!(f, create_cluster, json!({ "clusterName": "prod" })).is_ok());
    let other = json!({ "clusterName": "prod", "capacityProviders": ["FARGATE"] });
    assert_error(
        call!(f, create_cluster, other),
        "InvalidParameterException",
        "Arguments on this idempotent request",
    );

    let plain = call!(f, describe_clusters, json!({ "clusters": ["prod", "gone"] })).unwrap();
    let cluster = &plain.clusters.unwrap()[0];
    assert_eq!((cluster.tags.as_deref(), cluster.settings.as_deref()), (Some(&[][..]), Some(&[][..])));
    assert!(cluster.configuration.is_none() && cluster.attachments.is_none());
    let failure = &plain.failures.unwrap()[0];
    assert_eq!(failure.arn.as_deref(), Some("arn:aws:ecs:eu-central-1:123456789012:cluster/gone"));
    assert_eq!(failure.reason.as_deref(), Some("MISSING"));
    let include = ["TAGS", "SETTINGS", "STATISTICS", "CONFIGURATIONS", "ATTACHMENTS"];
    let full = call!(f, describe_clusters, json!({ "clusters": ["prod"], "include": include })).unwrap();
    let cluster = &full.clusters.unwrap()[0];
    assert!(cluster.configuration.is_some() && cluster.attachments.is_some());
    assert!(
        cluster
            .statistics
            .as_ref()
            .unwrap()
            .iter()
            .any(|s| s.name.as_deref() == Some("runningFargateTasksCount"))
    );

    let settings = json!([{ "name": "containerInsights", "value": "disabled" }]);
    let updated =
        call!(f, update_cluster_settings, json!({ "cluster": "prod", "settings": settings })).unwrap();
    assert_eq!(updated.cluster.unwrap().settings.unwrap()[0].value.as_deref(), Some("disabled"));
    let connect = json!({ "cluster": "prod", "serviceConnectDefaults": { "namespace": "ns" } });
    let updated = call!(f, update_cluster, connect).unwrap().cluster.unwrap();
    assert_eq!(updated.service_connect_defaults.unwrap().namespace.as_deref(), Some("ns"));

    let deleted = call!(f, delete_cluster, json!({ "cluster": "prod" })).unwrap().cluster.unwrap();
    assert_eq!(deleted.status.as_deref(), Some("INACTIVE"));
    let listed = call!(f, list_clusters, json!({})).unwrap().cluster_arns.unwrap();
    assert_eq!(listed, ["arn:aws:ecs:eu-central-1:123456789012:cluster/default"]);
    let described = call!(f, describe_clusters, json!({ "clusters": ["prod"] })).unwrap();
    assert_eq!(described.clusters.unwrap()[0].status.as_deref(), Some("INACTIVE"));
    let update = json!({ "cluster": "prod", "settings": [] });
    assert_error(
        call!(f, update_cluster, update),
        "ClusterNotFoundException",
        "The referenced cluster was inactive.",
    );
    // The name is free again.
    let again = call!(f, create_cluster, json!({ "clusterName": "prod" })).unwrap().cluster.unwrap();
    assert_eq!((again.status.as_deref(), again.tags.as_deref()), (Some("ACTIVE"), Some(&[][..])));
}

#[tokio::test]
async fn a_cluster_without_a_name_is_default() {
    let f = fixture().await;
    let created = call!(f, create_cluster, json!({})).unwrap().cluster.unwrap();
    assert_eq!(created.cluster_name.as_deref(), Some("default"));
    let described = call!(f, describe_clusters, json!({})).unwrap().clusters.unwrap();
    assert_eq!(described[0].capacity_providers.as_ref().unwrap().len(), 2);
    call!(f, delete_cluster, json!({ "cluster": "default" })).unwrap();
    assert_eq!(call!(f, list_clusters, json!({})).unwrap().cluster_arns.unwrap().len(), 0);
    assert_error(
        call!(f, create_cluster, json!({ "clusterName": "no spaces" })),
        "InvalidParameterException",
        "Cluster name",
    );
    assert_error(
        call!(f, delete_cluster, json!({ "cluster": "gone" })),
        "ClusterNotFoundException",
        "Cluster not found.",
    );
}

#[tokio::test]
async fn lists_of_clusters_come_in_pages() {
    let f = fixture().await;
    for i in 0..5 {
        call!(f, create_cluster, json!({ "clusterName": format!("c{i}") })).unwrap();
    }
    call!(f, delete_cluster, json!({ "cluster": "c1" })).unwrap();
    let (mut seen, mut token) = (Vec::new(), None::<String>);
    loop {
        let page = call!(f, list_clusters, json!({ "maxResults": 2, "nextToken": token })).unwrap();
        let arns = page.cluster_arns.unwrap();
        assert!(arns.len() <= 2);
        seen.extend(arns);
        token = page.next_token;
        if token.is_none() {
            break;
        }
    }
    let names: Vec<&str> = seen.iter().filter_map(|arn| arn.rsplit('/').next()).collect();
    assert_eq!(names, ["c0", "c2", "c3", "c4", "default"]);
    for bad in [json!({ "nextToken": "x" }), json!({ "maxResults": 0 }), json!({ "maxResults": 101 })] {
        assert_error(call!(f, list_clusters, bad), "InvalidParameterException", "");
    }
}

#[tokio::test]
async fn a_cluster_with_tasks_stays() {
    let f = fixture().await;
    call!(f, register_task_definition, definition(json!({}))).unwrap();
    let strategy = json!([{ "capacityProvider": "FARGATE_SPOT", "weight": 1 }]);
    let run = run_request(json!({ "launchType": null, "capacityProviderStrategy": strategy, "count": 2 }));
    let tasks = call!(f, run_task, run).unwrap().tasks.unwrap();
    assert_eq!(tasks[0].capacity_provider_name.as_deref(), Some("FARGATE_SPOT"));
    assert_error(
        call!(f, delete_cluster, json!({ "cluster": "default" })),
        "ClusterContainsTasksException",
        "The Cluster cannot be deleted while Tasks are active.",
    );
    let counts = call!(f, describe_clusters, json!({})).unwrap().clusters.unwrap();
    assert_eq!((counts[0].pending_tasks_count, counts[0].running_tasks_count), (Some(2), Some(0)));
    let remove =
        json!({ "cluster": "default", "capacityProviders": [], "defaultCapacityProviderStrategy": [] });
    assert_error(
        call!(f, put_cluster_capacity_providers, remove.clone()),
        "ResourceInUseException",
        "in use and cannot be removed",
    );
    for task in &tasks {
        super::tasks::refuse(&f, task.task_arn.as_deref().unwrap()).await;
    }
    let counts = call!(f, describe_clusters, json!({})).unwrap().clusters.unwrap();
    assert_eq!((counts[0].pending_tasks_count, counts[0].running_tasks_count), (Some(0), Some(0)));
    call!(f, put_cluster_capacity_providers, remove).unwrap();
    call!(f, delete_cluster, json!({ "cluster": "default" })).unwrap();
}

#[tokio::test]
async fn the_capacity_providers_are_fargates() {
    let f = fixture().await;
    let all = call!(f, describe_capacity_providers, json!({})).unwrap().capacity_providers.unwrap();
    let names: Vec<_> = all.iter().filter_map(|p| p.name.as_deref()).collect();
    assert_eq!(names, ["FARGATE", "FARGATE_SPOT"]);
    let asked = json!({ "capacityProviders": ["mine", "FARGATE_SPOT"] });
    let some = call!(f, describe_capacity_providers, asked).unwrap();
    assert_eq!(some.capacity_providers.unwrap().len(), 1);
    assert_eq!(some.failures.unwrap()[0].reason.as_deref(), Some("MISSING"));
    let first = call!(f, describe_capacity_providers, json!({ "maxResults": 1 })).unwrap();
    let rest =
        call!(f, describe_capacity_providers, json!({ "maxResults": 1, "nextToken": first.next_token }))
            .unwrap();
    assert_eq!(rest.capacity_providers.unwrap()[0].name.as_deref(), Some("FARGATE_SPOT"));
    assert_eq!(rest.next_token, None);
}
