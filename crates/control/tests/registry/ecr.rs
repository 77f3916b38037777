//! The ECR API through unmodified boto3.

use std::process::Command;

use serde_json::{Value, json};

use control::clock::Clock;
use control::registry::Digest;
use http::Method;

use crate::harness::{OCI_INDEX, OCI_MANIFEST, Server, image_manifest, index_manifest};

/// Runs a Python program with `ecr` at hand; what it shows is the result.
async fn python(server: &Server, program: &str) -> Value {
    let prelude = r#"
import boto3, hashlib, json, urllib.request
from botocore.config import Config
from botocore.exceptions import ClientError

ecr = boto3.client("ecr", config=Config(retries={"total_max_attempts": 1}, parameter_validation=False))

def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()

def error(call, **arguments):
    try:
        call(**arguments)
    except ClientError as problem:
        return [problem.response["Error"]["Code"], problem.response["Error"]["Message"]]
    return "no error"

def body(answer):
    return {key: value for key, value in answer.items() if key != "ResponseMetadata"}

def show(value):
    print(json.dumps(value, default=lambda time: time.timestamp()))
"#;
    let mut command = Command::new("python3");
    command
        .args(["-c", &format!("{prelude}\n{program}")])
        .env("AWS_ENDPOINT_URL", format!("http://{}", server.address))
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_REGION", "eu-west-1")
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("NO_PROXY", "*");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn repositories_are_made_shown_and_deleted() {
    let clock = Clock::manual(model::Timestamp(1_700_000_000_500));
    let options_clock = clock.clone();
    let server = Server::start_with(move |options| options.clock = options_clock).await;
    let seen = python(
        &server,
        r#"
made = ecr.create_repository(repositoryName="team/app", imageTagMutability="IMMUTABLE",
    tags=[{"Key": "a", "Value": "1"}], imageScanningConfiguration={"scanOnPush": True},
    encryptionConfiguration={"encryptionType": "KMS", "kmsKey": "alias/x"})["repository"]
for n in range(5):
    ecr.create_repository(repositoryName=f"many-{n}")
pages = [[r["repositoryName"] for r in page["repositories"]]
    for page in ecr.get_paginator("describe_repositories").paginate(PaginationConfig={"PageSize": 2})]
arn = made["repositoryArn"]
ecr.tag_resource(resourceArn=arn, tags=[{"Key": "b", "Value": "2"}])
ecr.untag_resource(resourceArn=arn, tagKeys=["a"])
ecr.put_image_scanning_configuration(repositoryName="team/app", imageScanningConfiguration={"scanOnPush": False})
mutability = ecr.put_image_tag_mutability(repositoryName="team/app", imageTagMutability="IMMUTABLE_WITH_EXCLUSION",
    imageTagMutabilityExclusionFilters=[{"filterType": "WILDCARD", "filter": "dev-*"}])
show({
    "made": made,
    "pages": pages,
    "tags": body(ecr.list_tags_for_resource(resourceArn=arn)),
    "mutability": body(mutability),
    "now": ecr.describe_repositories(repositoryNames=["team/app"])["repositories"][0]["imageScanningConfiguration"],
    "twice": error(ecr.create_repository, repositoryName="team/app"),
    "other registry": error(ecr.create_repository, repositoryName="x1", registryId="210987654321")[0],
    "bad name": error(ecr.create_repository, repositoryName="../etc")[0],
    "bad word": error(ecr.create_repository, repositoryName="x1", imageTagMutability="SOMETIMES")[0],
    "no filters": error(ecr.create_repository, repositoryName="x1", imageTagMutability="MUTABLE_WITH_EXCLUSION")[0],
    "reserved": error(ecr.tag_resource, resourceArn=arn, tags=[{"Key": "aws:x", "Value": ""}])[0],
    "many tags": error(ecr.tag_resource, resourceArn=arn, tags=[{"Key": f"k{n}", "Value": ""} for n in range(50)])[0],
    "bad arn": error(ecr.list_tags_for_resource, resourceArn="arn:aws:ecs:eu-west-1:123456789012:cluster/x")[0],
    "deleted": ecr.delete_repository(repositoryName="team/app")["repository"]["repositoryName"],
    "gone": error(ecr.describe_repositories, repositoryNames=["many-1", "team/app"]),
    "token": error(ecr.describe_repositories, nextToken="!")[0],
})
"#,
    )
    .await;
    let invalid = json!("InvalidParameterException");
    assert_eq!(
        seen,
        json!({
            "made": {
                "repositoryArn": "arn:aws:ecr:eu-west-1:123456789012:repository/team/app",
                "registryId": "123456789012",
                "repositoryName": "team/app",
                "repositoryUri": format!("{}/team/app", server.address),
                "createdAt": 1_700_000_000.5,
                "imageTagMutability": "IMMUTABLE",
                "imageScanningConfiguration": {"scanOnPush": true},
                "encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": "alias/x"},
            },
            "pages": [["many-0", "many-1"], ["many-2", "many-3"], ["many-4", "team/app"]],
            "tags": {"tags": [{"Key": "b", "Value": "2"}]},
            "mutability": {
                "registryId": "123456789012",
                "repositoryName": "team/app",
                "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
                "imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": "dev-*"}],
            },
            "now": {"scanOnPush": false},
            "twice": ["RepositoryAlreadyExistsException",
                "The repository with name 'team/app' already exists in the registry with id '123456789012'"],
            "other registry": "RepositoryNotFoundException",
            "bad name": invalid,
            "bad word": invalid,
            "no filters": invalid,
            "reserved": "InvalidTagParameterException",
            "many tags": "TooManyTagsException",
            "bad arn": invalid,
            "deleted": "team/app",
            "gone": ["RepositoryNotFoundException",
                "The repository with name 'team/app' does not exist in the registry with id '123456789012'"],
            "token": invalid,
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_and_pulled_by_the_api_alone() {
    let server = Server::start().await;
    let seen = python(
        &server,
        r#"
ecr.create_repository(repositoryName="app")
def layer(content, size):
    upload = ecr.initiate_layer_upload(repositoryName="app")
    for first in range(0, len(content), size):
        part = content[first:first + size]
        last = ecr.upload_layer_part(repositoryName="app", uploadId=upload["uploadId"], partFirstByte=first,
            partLastByte=first + len(part) - 1, layerPartBlob=part)["lastByteReceived"]
        assert last == first + len(part) - 1, last
    done = ecr.complete_layer_upload(repositoryName="app", uploadId=upload["uploadId"], layerDigests=[digest(content)])
    assert done["layerDigest"] == digest(content)
config, content = b"{}", bytes(range(256)) * 4000
layer(config, 10)
missing = error(ecr.put_image, repositoryName="app", imageTag="v1", imageManifest=MANIFEST)
layer(content, 400_000)
checked = ecr.batch_check_layer_availability(repositoryName="app",
    layerDigests=[digest(content), digest(b"none"), "nonsense"])
put = ecr.put_image(repositoryName="app", imageTag="v1", imageManifest=MANIFEST)["image"]
url = ecr.get_download_url_for_layer(repositoryName="app", layerDigest=digest(content))["downloadUrl"]
upload = ecr.initiate_layer_upload(repositoryName="app")["uploadId"]
got = ecr.batch_get_image(repositoryName="app", imageIds=[{"imageTag": "v1"}, {"imageTag": "v2"}, {}])
show({
    "part size": ecr.initiate_layer_upload(repositoryName="app")["partSize"],
    "missing": missing[0],
    "checked": [[l["layerAvailability"], l.get("layerSize")] for l in checked["layers"]]
        + [f["failureCode"] for f in checked["failures"]],
    "put": [put["imageId"]["imageTag"], put["imageManifest"] == MANIFEST],
    "downloaded": urllib.request.urlopen(url).read() == content,
    "same again": error(ecr.put_image, repositoryName="app", imageTag="v1", imageManifest=MANIFEST)[0],
    "other digest": error(ecr.put_image, repositoryName="app", imageManifest=MANIFEST, imageDigest=digest(b"x"))[0],
    "no manifest": error(ecr.put_image, repositoryName="app", imageManifest="{}")[0],
    "gap": error(ecr.upload_layer_part, repositoryName="app", uploadId=upload, partFirstByte=5, partLastByte=6,
        layerPartBlob=b"xx")[0],
    "length": error(ecr.upload_layer_part, repositoryName="app", uploadId=upload, partFirstByte=0, partLastByte=6,
        layerPartBlob=b"xx")[0],
    "empty": error(ecr.complete_layer_upload, repositoryName="app", uploadId=upload, layerDigests=[digest(b"")])[0],
    "no upload": error(ecr.complete_layer_upload, repositoryName="app",
        uploadId="00000000-0000-0000-0000-000000000000", layerDigests=[digest(b"")])[0],
    "no repository": error(ecr.initiate_layer_upload, repositoryName="none")[0],
    "wrong digest": [ecr.upload_layer_part(repositoryName="app", uploadId=upload, partFirstByte=0, partLastByte=1,
        layerPartBlob=b"xx")["lastByteReceived"],
        error(ecr.complete_layer_upload, repositoryName="app", uploadId=upload, layerDigests=[digest(b"")])[0]],
    "got": [[i["imageId"]["imageTag"], i["imageManifest"] == MANIFEST] for i in got["images"]],
    "failures": [[f["failureCode"], f["failureReason"]] for f in got["failures"]],
    "pulled": ecr.describe_images(repositoryName="app")["imageDetails"][0]["lastRecordedPullTime"] is not None,
})
"#
        .replace("MANIFEST", &format!("{:?}", image_manifest(b"{}", &content())))
        .as_str(),
    )
    .await;
    assert_eq!(
        seen,
        json!({
            "part size": 10_485_760,
            "missing": "LayersNotFoundException",
            "checked": [["AVAILABLE", 1_024_000], ["UNAVAILABLE", null], "InvalidLayerDigest"],
            "put": ["v1", true],
            "downloaded": true,
            "same again": "ImageAlreadyExistsException",
            "other digest": "ImageDigestDoesNotMatchException",
            "no manifest": "InvalidParameterException",
            "gap": "InvalidLayerPartException",
            "length": "InvalidParameterException",
            "empty": "EmptyUploadException",
            "no upload": "UploadNotFoundException",
            "no repository": "RepositoryNotFoundException",
            "wrong digest": [1, "InvalidLayerException"],
            "got": [["v1", true]],
            "failures": [
                ["ImageNotFound", "Requested image not found"],
                ["MissingDigestAndTag", "Invalid request parameters: both tag and digest cannot be null"],
            ],
            "pulled": true,
        })
    );
    // What the API put, docker gets.
    server.get("/v2/app/manifests/v1").await.expect(200);
}

fn content() -> Vec<u8> {
    (0..=255u8).collect::<Vec<u8>>().repeat(4000)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed_described_and_deleted() {
    let server = Server::start().await;
    let one = server.push_image("app", "v1", b"one").await;
    server.push_image("app", "v1-again", b"one").await;
    let two = server.push_image("app", "v2", b"two").await;
    let untagged = server.push_image("app", "moved", b"three").await;
    let four = server.push_image("app", "moved", b"four").await;
    let index = index_manifest(&[(one, image_manifest(b"{}", b"one").len())]);
    server.put_manifest("app", "list", OCI_INDEX, &index).await.expect(201);
    let list = Digest::of(index.as_bytes());
    let program = r#"
def ids(**arguments):
    return sorted([i["imageDigest"], i.get("imageTag")] for page in
        ecr.get_paginator("list_images").paginate(repositoryName="app", **arguments) for i in page["imageIds"])
def described(**arguments):
    return sorted(d["imageDigest"] for page in
        ecr.get_paginator("describe_images").paginate(repositoryName="app", **arguments) for d in page["imageDetails"])
def delete(*ids):
    answer = ecr.batch_delete_image(repositoryName="app", imageIds=list(ids))
    return [answer["imageIds"], [f["failureCode"] for f in answer["failures"]]]
result = {
    "all": [ids(PaginationConfig={"PageSize": size}) for size in (1, 2, 3, 100)],
    "tagged": ids(filter={"tagStatus": "TAGGED"}, PaginationConfig={"PageSize": 2}),
    "untagged": ids(filter={"tagStatus": "UNTAGGED"}, PaginationConfig={"PageSize": 1}),
    "described": [described(PaginationConfig={"PageSize": size}) for size in (1, 2, 100)],
    "described untagged": described(filter={"tagStatus": "UNTAGGED"}, PaginationConfig={"PageSize": 1}),
    "archived": described(filter={"imageStatus": "ARCHIVED"}),
    "detail": ecr.describe_images(repositoryName="app", imageIds=[{"imageTag": "v1"}, {"imageTag": "v1-again"}])["imageDetails"],
    "missing": error(ecr.describe_images, repositoryName="app", imageIds=[{"imageTag": "none"}]),
    "mismatch": ecr.batch_get_image(repositoryName="app", imageIds=[{"imageTag": "v1", "imageDigest": TWO}])["failures"][0]["failureCode"],
    "accepted": ecr.batch_get_image(repositoryName="app", imageIds=[{"imageTag": "v1"}], acceptedMediaTypes=["x/y"])["failures"][0]["failureCode"],
    "referenced": delete({"imageDigest": ONE}),
    "one tag": delete({"imageTag": "v1-again"}),
    "last tag": delete({"imageTag": "v2"}),
    "gone": error(ecr.describe_images, repositoryName="app", imageIds=[{"imageDigest": TWO}])[0],
    "not empty": error(ecr.delete_repository, repositoryName="app"),
    "image before list": delete({"imageDigest": ONE}, {"imageDigest": LIST}, {"imageDigest": "x"}, {"imageTag": "none"}),
    "left": described(),
    "forced": ecr.delete_repository(repositoryName="app", force=True)["repository"]["repositoryName"],
}
result["detail"][0]["imagePushedAt"] = result["detail"][0]["imagePushedAt"] is not None
show(result)
"#;
    let program = program
        .replace("ONE", &format!("'{one}'"))
        .replace("TWO", &format!("'{two}'"))
        .replace("LIST", &format!("'{list}'"));
    let seen = python(&server, &program).await;
    let entry = |digest: &Digest, tag: Option<&str>| json!([digest, tag]);
    let sorted = |mut entries: Vec<Value>| {
        entries.sort_by_key(Value::to_string);
        json!(entries)
    };
    let tagged = vec![
        entry(&one, Some("v1")),
        entry(&one, Some("v1-again")),
        entry(&two, Some("v2")),
        entry(&four, Some("moved")),
        entry(&list, Some("list")),
    ];
    let all = sorted(tagged.iter().cloned().chain([entry(&untagged, None)]).collect());
    let every = sorted([one, two, untagged, four, list].iter().map(|digest| json!(digest)).collect());
    assert_eq!(seen["all"], json!([all, all, all, all]));
    assert_eq!(seen["tagged"], sorted(tagged));
    assert_eq!(seen["untagged"], json!([entry(&untagged, None)]));
    assert_eq!(seen["described"], json!([every, every, every]));
    assert_eq!(seen["described untagged"], json!([untagged]));
    assert_eq!(seen["archived"], json!([]));
    assert_eq!(
        seen["detail"],
        json!([{
            "registryId": "123456789012",
            "repositoryName": "app",
            "imageDigest": one,
            "imageTags": ["v1", "v1-again"],
            "imageSizeInBytes": 5,
            "imagePushedAt": true,
            "imageManifestMediaType": OCI_MANIFEST,
            "artifactMediaType": "application/vnd.oci.image.config.v1+json",
            "imageStatus": "ACTIVE",
        }])
    );
    assert_eq!(
        seen["missing"],
        json!([
            "ImageNotFoundException",
            "The image with imageId {imageDigest:'null', imageTag:'none'} does not \
            exist within the repository with name 'app' in the registry with id '123456789012'"
        ])
    );
    assert_eq!(seen["mismatch"], "ImageTagDoesNotMatchDigest");
    assert_eq!(seen["accepted"], "ImageNotFound");
    assert_eq!(seen["referenced"], json!([[], ["ImageReferencedByManifestList"]]));
    assert_eq!(seen["one tag"], json!([[{"imageDigest": one, "imageTag": "v1-again"}], []]));
    assert_eq!(seen["last tag"], json!([[{"imageDigest": two, "imageTag": "v2"}], []]));
    assert_eq!(seen["gone"], "ImageNotFoundException");
    assert_eq!(
        seen["not empty"],
        json!([
            "RepositoryNotEmptyException",
            "The repository with name 'app' in registry with id '123456789012' \
            cannot be deleted because it still contains images"
        ])
    );
    assert_eq!(
        seen["image before list"],
        json!([
            [{"imageDigest": list, "imageTag": "list"}, {"imageDigest": one, "imageTag": "v1"}],
            ["InvalidImageDigest", "ImageNotFound"]
        ])
    );
    assert_eq!(seen["left"], sorted(vec![json!(untagged), json!(four)]));
    assert_eq!(seen["forced"], "app");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_tag_is_kept_by_both_faces() {
    let server = Server::start().await;
    server.push_image("app", "v1", b"one").await;
    server.push_blob("app", b"two").await;
    let other = image_manifest(b"{}", b"two");
    let program = format!(
        r#"
ecr.put_image_tag_mutability(repositoryName="app", imageTagMutability="IMMUTABLE")
show(error(ecr.put_image, repositoryName="app", imageTag="v1", imageManifest={other:?}))
"#
    );
    let seen = python(&server, &program).await;
    assert_eq!(
        seen,
        json!([
            "ImageTagAlreadyExistsException",
            "The image tag 'v1' already exists in the 'app' repository and \
            cannot be overwritten because the tag is immutable."
        ])
    );
    let refused = server.put_manifest("app", "v1", OCI_MANIFEST, &other).await.expect(400);
    assert_eq!(refused.code(), "TAG_INVALID");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_kept_checked_and_previewed() {
    let clock = Clock::manual(Clock::system().now());
    let options_clock = clock.clone();
    let server = Server::start_with(move |options| options.clock = options_clock).await;
    let old = server.push_image("app", "v1", b"one").await;
    clock.advance(1000);
    server.push_image("app", "v2", b"two").await;
    let seen = python(
        &server,
        r#"
rule = {"rulePriority": 3, "description": "keep the newest one, expire all the others", "selection":
    {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 1}, "action": {"type": "expire"}}
text = json.dumps({"rules": [rule]})
none = error(ecr.get_lifecycle_policy, repositoryName="app")
preview_none = error(ecr.get_lifecycle_policy_preview, repositoryName="app")[0]
put = body(ecr.put_lifecycle_policy(repositoryName="app", lifecyclePolicyText=text))
started = ecr.start_lifecycle_policy_preview(repositoryName="app")["status"]
ecr.get_waiter("lifecycle_policy_preview_complete").wait(repositoryName="app")
preview = ecr.get_lifecycle_policy_preview(repositoryName="app")
rule["action"]["type"] = "shred"
bad = error(ecr.put_lifecycle_policy, repositoryName="app", lifecyclePolicyText=json.dumps({"rules": [rule]}))
short = error(ecr.put_lifecycle_policy, repositoryName="app", lifecyclePolicyText="{}")[0]
statement = json.dumps({"Version": "2008-10-17", "Statement": []})
no_policy = error(ecr.get_repository_policy, repositoryName="app")
ecr.set_repository_policy(repositoryName="app", policyText=statement)
show({
    "none": none,
    "no preview": preview_none,
    "put": put == {"registryId": "123456789012", "repositoryName": "app", "lifecyclePolicyText": text},
    "started": started,
    "preview": [preview["status"], preview["summary"]["expiringImageTotalCount"], [
        [r["imageDigest"], r["imageTags"], r["action"]["type"], r["appliedRulePriority"]]
        for r in preview["previewResults"]]],
    "untagged": ecr.get_lifecycle_policy_preview(repositoryName="app", filter={"tagStatus": "UNTAGGED"})["previewResults"],
    "bad": bad,
    "short": short,
    "got": ecr.get_lifecycle_policy(repositoryName="app")["lifecyclePolicyText"] == text,
    "deleted": ecr.delete_lifecycle_policy(repositoryName="app")["lifecyclePolicyText"] == text,
    "deleted twice": error(ecr.delete_lifecycle_policy, repositoryName="app")[0],
    "no policy": no_policy,
    "policy": ecr.get_repository_policy(repositoryName="app")["policyText"] == statement,
    "policy deleted": ecr.delete_repository_policy(repositoryName="app")["policyText"] == statement,
    "bad policy": error(ecr.set_repository_policy, repositoryName="app", policyText="nonsense")[0],
    "still there": len(ecr.describe_images(repositoryName="app")["imageDetails"]),
})
"#,
    )
    .await;
    assert_eq!(
        seen,
        json!({
            "none": ["LifecyclePolicyNotFoundException", "Lifecycle policy does not exist for the repository with \
                name 'app' in the registry with id '123456789012'"],
            "no preview": "LifecyclePolicyPreviewNotFoundException",
            "put": true,
            "started": "IN_PROGRESS",
            "preview": ["COMPLETE", 1, [[old, ["v1"], "EXPIRE", 3]]],
            "untagged": [],
            "bad": ["InvalidParameterException", "Invalid parameter at 'LifecyclePolicyText' failed to satisfy \
                constraint: 'Lifecycle policy validation failure: instance value (\"shred\") not found in enum \
                (possible values: [\"expire\"])'"],
            "short": "InvalidParameterException",
            "got": true,
            "deleted": true,
            "deleted twice": "LifecyclePolicyNotFoundException",
            "no policy": ["RepositoryPolicyNotFoundException", "Repository policy does not exist for the repository \
                with name 'app' in the registry with id '123456789012'"],
            "policy": true,
            "policy deleted": true,
            "bad policy": "InvalidParameterException",
            "still there": 2,
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorization_token_logs_in() {
    let server = Server::start().await;
    let seen = python(
        &server,
        r#"
data = ecr.get_authorization_token(registryIds=["123456789012"])["authorizationData"]
show([data, error(ecr.get_authorization_token, registryIds=["210987654321"])[0]])
"#,
    )
    .await;
    let token = seen[0][0]["authorizationToken"].as_str().unwrap();
    assert_eq!(seen[0][0]["proxyEndpoint"], format!("http://{}", server.address));
    let expires = seen[0][0]["expiresAt"].as_f64().unwrap() * 1000.0 - Clock::system().now().millis() as f64;
    assert!((11.9 * 3_600_000.0..=12.0 * 3_600_000.0).contains(&expires), "{expires}");
    assert_eq!(seen[1], "InvalidParameterException");
    let authorization = format!("Basic {token}");
    server.send(Method::GET, "/v2/", &[("authorization", &authorization)], "").await.expect(200);
}
