//! What stands between a store and its server, and sees all that passes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

use super::Store;

/// Passes on what comes, and swallows it while it is silent. It never closes a connection.
pub struct Proxy {
    address: SocketAddr,
    pub silent: watch::Sender<bool>,
    trips: Arc<AtomicUsize>,
}

impl Proxy {
    pub async fn start(store: &Store) -> Self {
        let server: Arc<PgConnectOptions> = Arc::new(store.url().parse().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (silent, is_silent) = watch::channel(false);
        let trips = Arc::new(AtomicUsize::new(0));
        let counted = trips.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (from_client, to_client) = client.into_split();
                let count = RoundTrips { trips: counted.clone(), is_started: false, rest: Vec::new() };
                match server.get_socket() {
                    Some(directory) => {
                        let socket = directory.join(format!(".s.PGSQL.{}", server.get_port()));
                        let (from_server, to_server) =
                            UnixStream::connect(socket).await.unwrap().into_split();
                        tokio::spawn(pass(from_client, to_server, is_silent.clone(), Some(count)));
                        tokio::spawn(pass(from_server, to_client, is_silent.clone(), None));
                    }
                    None => {
                        let there = TcpStream::connect((server.get_host(), server.get_port())).await.unwrap();
                        let (from_server, to_server) = there.into_split();
                        tokio::spawn(pass(from_client, to_server, is_silent.clone(), Some(count)));
                        tokio::spawn(pass(from_server, to_client, is_silent.clone(), None));
                    }
                }
            }
        });
        Self { address, silent, trips }
    }

    /// The store's own URL, by way of this, with more parameters.
    pub fn url(&self, store: &Store, parameters: &str) -> String {
        let url = store.url();
        let (user, rest) = url.split_once('@').unwrap();
        let (_, database) = rest.split_once('/').unwrap();
        let separator = if database.contains('?') { '&' } else { '?' };
        format!("{user}@{}/{database}{separator}sslmode=disable&{parameters}", self.address)
    }

    /// How often a client has waited for the server since this was asked.
    pub fn take_trips(&self) -> usize {
        self.trips.swap(0, Ordering::Relaxed)
    }
}

/// Counts what the server answers with `ReadyForQuery`: `Sync` and `Query`
/// (<https://www.postgresql.org/docs/current/protocol-message-formats.html>).
struct RoundTrips {
    trips: Arc<AtomicUsize>,
    /// The first message has no type.
    is_started: bool,
    /// What came of a message that is not whole yet.
    rest: Vec<u8>,
}

impl RoundTrips {
    fn see(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        loop {
            let kind = usize::from(self.is_started);
            let Some(length) = self.rest.get(kind..kind + 4) else { return };
            let length = kind + u32::from_be_bytes(length.try_into().unwrap()) as usize;
            if self.rest.len() < length {
                return;
            }
            if self.is_started && matches!(self.rest[0], b'S' | b'Q') {
                self.trips.fetch_add(1, Ordering::Relaxed);
            }
            self.is_started = true;
            self.rest.drain(..length);
        }
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    is_silent: watch::Receiver<bool>,
    mut count: Option<RoundTrips>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if let Some(count) = &mut count {
            count.see(&buffer[..length]);
        }
        // What comes into the silence is lost for good, as it is when a machine loses its power.
        if !*is_silent.borrow() && to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
