//! A server in a container, through testcontainers.

use std::sync::Mutex;

use sqlx::postgres::PgConnectOptions;
use testcontainers::core::IntoContainerPort;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};

use super::{IMAGE, PostgresServer, Started, wait_until_it_answers};

const DEFAULT_IMAGE: &str = "postgres:17-alpine";
/// Only this machine reaches the server, and only while the suite runs.
const PASSWORD: &str = "ork-state";

/// A running container. [`stop`](Self::stop) removes it. If the process is killed before that, the
/// container stays and `docker ps` shows it.
#[derive(Debug)]
pub(super) struct Container(ContainerAsync<GenericImage>);

impl Container {
    pub(super) async fn stop(self) {
        if let Err(error) = self.0.rm().await {
            eprintln!("the container of the PostgreSQL server was not removed: {error}");
        }
    }
}

pub(super) async fn start() -> Result<PostgresServer, String> {
    let image = std::env::var(IMAGE).unwrap_or_else(|_| DEFAULT_IMAGE.to_owned());
    let (name, tag) = match image.rsplit_once(':') {
        // A colon before a slash belongs to a registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image.as_str(), "latest"),
    };
    let container = GenericImage::new(name, tag)
        .with_exposed_port(5432.tcp())
        .with_env_var("POSTGRES_PASSWORD", PASSWORD)
        .start()
        .await
        .map_err(|error| format!("no container of the image {image}: {error}"))?;
    let host = container.get_host().await.map_err(|error| error.to_string())?.to_string();
    let port = container.get_host_port_ipv4(5432).await.map_err(|error| error.to_string())?;
    let options = PgConnectOptions::new_without_pgpass()
        .host(&host)
        .port(port)
        .username("postgres")
        .password(PASSWORD)
        .database("postgres");
    let container = Container(container);
    if let Err(why) = wait_until_it_answers(&options).await {
        container.stop().await;
        return Err(format!("the container of {image} {why}"));
    }
    Ok(PostgresServer {
        origin: format!("a container of the image {image}"),
        url: (format!("postgres://postgres:{PASSWORD}@{host}:{port}/"), String::new()),
        started: Mutex::new(Started::Container(Box::new(container))),
    })
}
