//! The one HTTP endpoint: authenticates a request, finds its operation, has it handled, and encodes
//! the answer. The registry's `/v2/` has its own authentication.

use std::sync::Arc;

use aws_api::{Routed, Service, sigv4};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use http_body_util::{BodyExt, Limited};
use model::{ClusterName, Region, TaskId};

use crate::api::{self, Answer, Caller, Services};
use crate::random;
use crate::snapshots::SnapshotError;
use crate::{Control, reset};

/// The largest request body, in bytes: ECR's UploadLayerPart takes 20 MiB in base64.
const MAX_BODY: usize = 32 << 20;

/// What requests are served with.
pub struct Endpoint {
    pub control: Control,
    pub services: Services,
    pub registry: Router,
}

impl Endpoint {
    /// All that is served, as one service.
    pub fn router(self) -> Router {
        let registry = self.registry.clone();
        Router::new()
            .route("/_coracle/health", get(|| async { "ok\n" }))
            .route("/_coracle/reset", post(empty))
            .route("/_coracle/tasks/{task}/pulls", get(pulls))
            .route("/_coracle/tasks/{task}/snapshots", post(make_snapshot))
            .route("/_coracle/snapshots", get(list_snapshots))
            .route("/_coracle/snapshots/{id}", get(show_snapshot).delete(delete_snapshot))
            .fallback(aws)
            .with_state(Arc::new(self))
            .merge(registry)
    }
}

async fn aws(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    let request_id = random::uuid();
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            let error = aws_api::error::common::request_entity_too_large(MAX_BODY);
            return respond(aws_api::Protocol::of(&parts).encode_error(&error, &request_id));
        }
    };
    let routed = match aws_api::route(&parts, &body) {
        Ok(routed) => routed,
        Err(error) => return respond(aws_api::Protocol::of(&parts).encode_error(&error, &request_id)),
    };
    match endpoint.serve(&parts, body, &routed, &request_id).await {
        Ok(Answer::Whole(response)) => respond(response),
        Ok(Answer::Stream(response)) => response,
        Err(error) => {
            let service = routed.service;
            if error.http_status >= 500 {
                tracing::error!(request_id, ?service, operation = routed.operation.name, error = %error, "a request failed");
            } else {
                tracing::debug!(request_id, ?service, operation = routed.operation.name, error = %error, "a request was refused");
            }
            respond(routed.encode_error(&error, &request_id))
        }
    }
}

/// `coracle reset`: empties an ephemeral server. Signed like any other call.
async fn empty(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    if let Err(refused) = endpoint.own_call(request).await {
        return refused;
    }
    match endpoint.control.reset().await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error @ reset::ResetError::NotEphemeral) => {
            (StatusCode::CONFLICT, error.to_string()).into_response()
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the server cannot be emptied");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

/// `coracle run`: how far the pulls of a task are, as an object of [`link::PullProgress`] by container; empty when none is
/// under way. Signed like any other call.
async fn pulls(
    State(endpoint): State<Arc<Endpoint>>,
    Path(task): Path<String>,
    request: Request,
) -> Response {
    let caller = match endpoint.own_call(request).await {
        Ok(caller) => caller,
        Err(refused) => return refused,
    };
    let Ok(task) = TaskId::parse(&task) else { return StatusCode::NOT_FOUND.into_response() };
    let known = endpoint
        .control
        .pulls()
        .of(&task, |scope| scope.account == caller.account && scope.region == caller.region);
    json(&known)
}

/// `coracle snapshot`: asks for a snapshot of a task, as a [`crate::snapshots::View`]. The query may be
/// `cluster=NAME`.
async fn make_snapshot(
    State(endpoint): State<Arc<Endpoint>>,
    Path(task): Path<String>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Response> {
    let caller = endpoint.own_call(request).await?;
    let cluster = match query.as_deref() {
        None => Some("default"),
        Some(query) => query.strip_prefix("cluster="),
    };
    let (Some(Ok(cluster)), Ok(task)) = (cluster.map(ClusterName::parse), TaskId::parse(task)) else {
        return Err((StatusCode::BAD_REQUEST, "not a cluster's name or a task's id").into_response());
    };
    let made = endpoint.control.snapshots().create(&caller, &cluster, &task).await;
    Ok(json(&made.map_err(refused)?))
}

async fn list_snapshots(
    State(endpoint): State<Arc<Endpoint>>,
    request: Request,
) -> Result<Response, Response> {
    let caller = endpoint.own_call(request).await?;
    let found = endpoint.control.snapshots().list(&caller).await;
    Ok(json(&found.map_err(refused)?))
}

async fn show_snapshot(
    State(endpoint): State<Arc<Endpoint>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Response> {
    let caller = endpoint.own_call(request).await?;
    let found = endpoint.control.snapshots().get(&caller, &id).await;
    Ok(json(&found.map_err(refused)?))
}

async fn delete_snapshot(
    State(endpoint): State<Arc<Endpoint>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Response> {
    let caller = endpoint.own_call(request).await?;
    endpoint.control.snapshots().delete(&caller, &id).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn refused(error: SnapshotError) -> Response {
    let status = error.status();
    if status.is_server_error() {
        tracing::error!(error = &error as &dyn std::error::Error, "a call about snapshots failed");
    }
    (status, error.to_string()).into_response()
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => ([(http::header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn respond(response: http::Response<Bytes>) -> Response {
    response.map(Body::from).into_response()
}

impl Endpoint {
    async fn serve(
        &self,
        parts: &Parts,
        body: Bytes,
        routed: &Routed,
        request_id: &str,
    ) -> Result<Answer, aws_api::Error> {
        let (caller, body) = self.authenticate(parts, &body, routed.service, request_id)?;
        routed.require_served()?;
        routed.require_plain_body(parts)?;
        api::dispatch(&self.services, &caller, routed, &body).await
    }

    /// Who calls one of Coracle's own paths; else the answer to give.
    async fn own_call(&self, request: Request) -> Result<Caller, Response> {
        let (parts, body) = request.into_parts();
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return Err(StatusCode::PAYLOAD_TOO_LARGE.into_response()),
        };
        match self.authenticate(&parts, &body, Service::Ecs, &random::uuid()) {
            Ok((caller, _)) => Ok(caller),
            Err(error) => Err((StatusCode::FORBIDDEN, error.to_string()).into_response()),
        }
    }

    /// Who calls: today the account's root user, or nobody.
    fn authenticate(
        &self,
        parts: &Parts,
        body: &Bytes,
        service: Service,
        request_id: &str,
    ) -> Result<(Caller, Bytes), aws_api::Error> {
        let config = self.control.config();
        let key = &config.root_key;
        let secret =
            |id: &str| (id == key.id).then(|| sigv4::SecretKey::from(key.secret.expose().to_owned()));
        let now = aws_api::Timestamp::from_millis(self.control.now().millis());
        let verified = sigv4::Verifier::default().verify(parts, body, now, secret)?;
        // A task's `awslogs-region` may be any: who reads its log there signs for that region.
        let region = match (service, Region::parse(&verified.region)) {
            (Service::Logs, Ok(signed_for)) => signed_for,
            _ => config.region.clone(),
        };
        verified.check_scope(service, region.as_str())?;
        if verified.session_token.is_some() {
            // Only temporary credentials have one, and this key is not temporary.
            return Err(aws_api::error::common::unrecognized_client());
        }
        let caller = Caller {
            account: config.account.clone(),
            region,
            principal_arn: format!("arn:aws:iam::{}:root", config.account),
            request_id: request_id.to_owned(),
        };
        Ok((caller, verified.body))
    }
}
