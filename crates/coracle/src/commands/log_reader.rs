//! Reads the log streams of a task's containers, each event once, in order of time.

use std::collections::VecDeque;

use aws_api::ecs::{ContainerDefinition, TaskDefinition};
use aws_api::logs::operation::GetLogEvents;
use aws_api::logs::{GetLogEventsRequest, OutputLogEvent};
use serde_json::json;

use crate::client::Client;

/// One event and the index of its stream.
pub struct Event {
    pub stream: usize,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    pub message: String,
}

impl Event {
    /// For programs: one line.
    pub fn json(&self, container: &str) -> serde_json::Value {
        json!({"timestamp": self.timestamp, "container": container, "message": self.message})
    }
}

/// Where a container's output is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamName {
    /// The server's own, if none is named.
    pub region: Option<String>,
    pub group: String,
    pub stream: String,
}

/// The stream of a container with the awslogs driver: PREFIX/CONTAINER/TASK-ID ("Send Amazon ECS
/// logs to CloudWatch" in the ECS developer guide).
pub fn stream_of(container: &ContainerDefinition, task_id: &str) -> Option<StreamName> {
    let configuration = container.log_configuration.as_ref().filter(|c| c.log_driver == "awslogs")?;
    let option = |name: &str| configuration.options.as_ref()?.get(name).filter(|value| !value.is_empty());
    let prefix = option("awslogs-stream-prefix").map_or("ecs", String::as_str);
    let name = container.name.as_deref().unwrap_or_default();
    Some(StreamName {
        region: option("awslogs-region").cloned(),
        group: option("awslogs-group")?.clone(),
        stream: format!("{prefix}/{name}/{task_id}"),
    })
}

/// Names and streams of a definition's containers that have one.
pub fn streams_of(definition: &TaskDefinition, task_id: &str) -> Vec<(String, StreamName)> {
    let containers = definition.container_definitions.iter().flatten();
    containers.filter_map(|c| Some((c.name.clone().unwrap_or_default(), stream_of(c, task_id)?))).collect()
}

struct Cursor {
    name: StreamName,
    token: Option<String>,
    fetched: VecDeque<OutputLogEvent>,
}

/// Goes forward through several streams.
pub struct LogReader {
    cursors: Vec<Cursor>,
    since: Option<i64>,
}

impl LogReader {
    /// From the beginning, or from `since` on (milliseconds since the Unix epoch).
    pub fn new(streams: Vec<StreamName>, since: Option<i64>) -> Self {
        let cursor = |name| Cursor { name, token: None, fetched: VecDeque::new() };
        Self { cursors: streams.into_iter().map(cursor).collect(), since }
    }

    /// The next events that there are by now; none when all were read. At most some pages.
    pub async fn next(&mut self, client: &Client) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        for cursor in &mut self.cursors {
            cursor.fetch(client, self.since).await?;
        }
        // A stream whose page was used up may go on before the others' next event: read on first.
        while let Some(earliest) = self.earliest() {
            let cursor = &mut self.cursors[earliest];
            if let Some(event) = cursor.fetched.pop_front() {
                events.push(Event {
                    stream: earliest,
                    timestamp: event.timestamp.unwrap_or_default(),
                    message: event.message.unwrap_or_default(),
                });
            }
            if cursor.fetched.is_empty() {
                break;
            }
        }
        Ok(events)
    }

    fn earliest(&self) -> Option<usize> {
        let heads = self.cursors.iter().enumerate();
        let heads = heads.filter_map(|(i, cursor)| Some((cursor.fetched.front()?.timestamp, i)));
        heads.min().map(|(_, index)| index)
    }
}

impl Cursor {
    /// Fetches a page if there is nothing left of the last.
    async fn fetch(&mut self, client: &Client, since: Option<i64>) -> anyhow::Result<()> {
        if !self.fetched.is_empty() {
            return Ok(());
        }
        let request = GetLogEventsRequest {
            log_group_name: Some(self.name.group.clone()),
            log_stream_name: self.name.stream.clone(),
            start_time: since.filter(|_| self.token.is_none()),
            next_token: self.token.clone(),
            start_from_head: Some(true),
            ..GetLogEventsRequest::default()
        };
        let region = self.name.region.as_deref().unwrap_or(&client.server.region);
        match client.call_in::<GetLogEvents>(region, &request).await {
            Ok(page) => {
                // A page without events has the token of where it began. Without a token given, that
                // is before whatever comes, so it is good to go on from.
                self.token = page.next_forward_token;
                self.fetched = page.events.unwrap_or_default().into();
                Ok(())
            }
            // A container makes its group and stream as it starts.
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<aws_api::Error>().is_some_and(|error| error.code == "ResourceNotFoundException")
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_api::ecs::LogConfiguration;

    #[test]
    fn streams_are_named_as_the_driver_names_them() {
        let options = [("awslogs-group", "/a"), ("awslogs-stream-prefix", "p")];
        let mut container = ContainerDefinition {
            name: Some("web".to_owned()),
            log_configuration: Some(LogConfiguration {
                log_driver: "awslogs".to_owned(),
                options: Some(options.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                ..LogConfiguration::default()
            }),
            ..ContainerDefinition::default()
        };
        let stream = stream_of(&container, "123").unwrap();
        assert_eq!(
            stream,
            StreamName { region: None, group: "/a".to_owned(), stream: "p/web/123".to_owned() }
        );
        container.log_configuration = None;
        assert_eq!(stream_of(&container, "123"), None);
    }
}
