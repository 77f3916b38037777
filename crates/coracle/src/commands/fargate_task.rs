//! How commands start tasks: on Fargate, in the subnet and with the security group that the server
//! has made for them.

use aws_api::ecs::{AwsVpcConfiguration, NetworkConfiguration, RunTaskRequest};

use crate::state_dir::Endpoint;

/// A request for one task, in the default cluster. `started_by` is what ListTasks filters by.
pub fn request(server: &Endpoint, started_by: &str, task_definition: String) -> RunTaskRequest {
    RunTaskRequest {
        count: Some(1),
        launch_type: Some("FARGATE".to_owned()),
        network_configuration: Some(NetworkConfiguration {
            awsvpc_configuration: Some(AwsVpcConfiguration {
                subnets: vec![server.subnet.clone()],
                security_groups: Some(vec![server.security_group.clone()]),
                assign_public_ip: Some("DISABLED".to_owned()),
            }),
        }),
        started_by: Some(started_by.to_owned()),
        task_definition,
        ..RunTaskRequest::default()
    }
}
