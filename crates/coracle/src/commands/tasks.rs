//! Tasks as commands find, read and name them.

use std::time::Duration;

use anyhow::bail;
use aws_api::ecs::operation::{DescribeTasks, ListTasks};
use aws_api::ecs::{DescribeTasksRequest, ListTasksRequest, Task};

use crate::client::Client;

/// What people see of a task's id; enough to tell tasks apart.
const SHORT: usize = 12;

/// DescribeTasks takes at most 100 tasks (API reference).
const DESCRIBE_MAX: usize = 100;

/// A task and the cluster it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRef {
    /// A name or ARN; `None` is the default cluster.
    pub cluster: Option<String>,
    pub id: String,
}

/// Finds the task of an ARN, an id, or an id's beginning.
pub async fn find(client: &Client, cluster: Option<&str>, text: &str) -> anyhow::Result<TaskRef> {
    if let Some(found) = written_out(cluster, text)? {
        return Ok(found);
    }
    let mut ids = Vec::new();
    for status in ["RUNNING", "STOPPED"] {
        ids.extend(list(client, cluster, status).await?.iter().map(|arn| id_of(arn).to_owned()));
    }
    let id = complete(&ids, text, cluster.unwrap_or("default"))?;
    Ok(TaskRef { cluster: cluster.map(str::to_owned), id })
}

/// A reference that needs no look at what there is.
fn written_out(cluster: Option<&str>, text: &str) -> anyhow::Result<Option<TaskRef>> {
    let id = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if text.starts_with("arn:") {
        let resource = text.splitn(6, ':').nth(5).and_then(|resource| resource.strip_prefix("task/"));
        return match resource.map(|resource| resource.split_once('/').unwrap_or(("", resource))) {
            Some((of, name)) if id(name) && !name.is_empty() => {
                let of = Some(of).filter(|of| !of.is_empty()).or(cluster);
                Ok(Some(TaskRef { cluster: of.map(str::to_owned), id: name.to_owned() }))
            }
            _ => bail!("'{text}' is not a task's ARN"),
        };
    }
    if text.is_empty() || !id(text) {
        bail!("'{text}' is not a task's id, the beginning of one, or an ARN");
    }
    let whole = matches!(text.len(), 32 | 36);
    Ok(whole.then(|| TaskRef { cluster: cluster.map(str::to_owned), id: text.to_owned() }))
}

/// The only id that begins so.
fn complete(ids: &[String], start: &str, cluster: &str) -> anyhow::Result<String> {
    let mut matching: Vec<&String> = ids.iter().filter(|id| id.starts_with(start)).collect();
    matching.sort_unstable();
    matching.dedup();
    match matching.as_slice() {
        [only] => Ok((*only).clone()),
        [] => bail!(
            "no task in cluster {cluster} has an id that begins with {start}; `coracle ps -a` lists them (stopped \
             ones for an hour), --cluster names another cluster"
        ),
        several => {
            let shown: Vec<&str> = several.iter().take(5).map(|id| id.as_str()).collect();
            let more = if several.len() > shown.len() { ", …" } else { "" };
            bail!("{} tasks have ids that begin with {start}: {}{more}", several.len(), shown.join(", "))
        }
    }
}

/// ARNs of all tasks of a cluster with that desired status.
pub async fn list(client: &Client, cluster: Option<&str>, status: &str) -> anyhow::Result<Vec<String>> {
    let mut arns = Vec::new();
    let mut request = ListTasksRequest {
        cluster: cluster.map(str::to_owned),
        desired_status: Some(status.to_owned()),
        ..ListTasksRequest::default()
    };
    loop {
        let page = client.call::<ListTasks>(&request).await?;
        arns.extend(page.task_arns.unwrap_or_default());
        request.next_token = page.next_token;
        if request.next_token.is_none() {
            return Ok(arns);
        }
    }
}

/// The tasks of these ids or ARNs that there (still) are.
pub async fn describe(client: &Client, cluster: Option<&str>, tasks: &[String]) -> anyhow::Result<Vec<Task>> {
    let mut found = Vec::new();
    for tasks in tasks.chunks(DESCRIBE_MAX) {
        let request = DescribeTasksRequest {
            cluster: cluster.map(str::to_owned),
            tasks: tasks.to_vec(),
            include: Some(vec!["TAGS".to_owned()]),
        };
        found.extend(client.call::<DescribeTasks>(&request).await?.tasks.unwrap_or_default());
    }
    Ok(found)
}

/// One task, or an error that says that there is none.
pub async fn get(client: &Client, task: &TaskRef) -> anyhow::Result<Task> {
    let found = describe(client, task.cluster.as_deref(), std::slice::from_ref(&task.id)).await?;
    match found.into_iter().next() {
        Some(task) => Ok(task),
        None => bail!(
            "there is no task {} in cluster {}; stopped tasks are forgotten after an hour",
            task.id,
            task.cluster.as_deref().unwrap_or("default")
        ),
    }
}

/// Waits until a task is STOPPED, and gives it as it is then.
pub async fn stopped(client: &Client, task: &TaskRef) -> anyhow::Result<Task> {
    let mut pause = Duration::from_millis(20);
    loop {
        let found = get(client, task).await?;
        if is_stopped(&found) {
            return Ok(found);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

pub fn is_stopped(task: &Task) -> bool {
    task.last_status.as_deref() == Some("STOPPED")
}

/// The last part of an ARN.
pub fn id_of(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

/// The first 12 characters of an id or of an ARN's id.
pub fn short(arn: &str) -> &str {
    let id = id_of(arn);
    id.get(..SHORT).unwrap_or(id)
}

/// The private IPv4 address of a task's network interface, once it has one.
pub fn address(task: &Task) -> Option<&str> {
    let details =
        task.attachments.iter().flatten().flat_map(|attachment| attachment.details.iter().flatten());
    details
        .filter(|detail| detail.name.as_deref() == Some("privateIPv4Address"))
        .find_map(|detail| detail.value.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_id_that_begins_so_is_meant() {
        let ids = ["aab0".to_owned(), "aac1".to_owned(), "b".to_owned(), "b".to_owned()];
        assert_eq!(complete(&ids, "aab", "default").unwrap(), "aab0");
        assert_eq!(complete(&ids, "b", "default").unwrap(), "b");
        let error = complete(&ids, "aa", "default").unwrap_err().to_string();
        assert_eq!(error, "2 tasks have ids that begin with aa: aab0, aac1");
        assert!(complete(&ids, "c", "blue").unwrap_err().to_string().starts_with("no task in cluster blue"));
    }

    #[test]
    fn arns_bring_their_cluster() {
        let arn = "arn:aws:ecs:us-east-1:000000000000:task/blue/0123456789abcdef0123456789abcdef";
        let found = written_out(None, arn).unwrap().unwrap();
        assert_eq!(found.cluster.as_deref(), Some("blue"));
        assert_eq!(found.id, "0123456789abcdef0123456789abcdef");
        assert_eq!(short(arn), "0123456789ab");
        assert_eq!(written_out(None, "0123").unwrap(), None);
        assert!(written_out(None, &found.id).unwrap().is_some());
        for bad in ["", "arn:aws:ecs:r:a:cluster/x", "../../x", "arn:", "web", "a b"] {
            assert!(written_out(None, bad).is_err(), "{bad}");
        }
    }
}
