//! `<base>/<run>/<task>/{spec,status,output}.json`.

use std::path::PathBuf;
use std::sync::Arc;

use ::object_store::memory::InMemory;
use ::object_store::path::Path;
use async_trait::async_trait;
use ork_state_api::ork::{LegacyRunId, LegacySpec, LegacyStatus, LegacyTaskName, ObjectStore};
use ork_state_api::{ConnectOptions, Entity, Error, Json, Result};

use super::objects::{Key, Place};
use super::{blocking, files};

const SPEC: &str = "spec.json";
const STATUS: &str = "status.json";
const OUTPUT: &str = "output.json";

/// The files of old flows' tasks, as Ork kept them: in a directory, in memory, or in an object
/// store.
///
/// In a directory they are synced, and only their owner can read them (0600, in directories of
/// 0700). Cheap to clone.
///
/// ```
/// # use ork_state_file::ObjectStoreFiles;
/// # async fn open() -> ork_state_api::Result<()> {
/// let local = ObjectStoreFiles::directory("./ork-tasks").await?;
/// let memory = ObjectStoreFiles::connect("memory:").await?;
/// // With the feature `s3`:
/// # if false {
/// let bucket = ObjectStoreFiles::connect("s3://bucket/ork-tasks").await?;
/// # }
/// # Ok(()) }
/// ```
#[doc(alias = "LocalObjectStore")]
#[derive(Debug, Clone)]
pub struct ObjectStoreFiles {
    place: Place,
}

impl ObjectStoreFiles {
    /// The files in this directory, which is created if its parent exists. Ork called this
    /// `LocalObjectStore`.
    ///
    /// # Errors
    /// `Unavailable` if the directory cannot be created or found. `InvalidInput` if it is a file,
    /// or its path is not UTF-8.
    pub async fn directory(base: impl Into<PathBuf>) -> Result<Self> {
        let base = base.into();
        let base = blocking(move || files::base_directory(&base)).await?;
        let shown = base.to_str().map(str::to_owned).ok_or_else(|| {
            Error::invalid("store directory", format!("{} is not UTF-8", base.display()))
                .with_hint("Executors are told paths in it as text: choose another")
        })?;
        Ok(Self { place: Place::Directory { base, shown } })
    }

    /// New files in memory, gone when the last clone is dropped. For tests.
    #[must_use]
    pub fn memory() -> Self {
        Self::over(Arc::new(InMemory::new()), Path::default(), "memory:")
    }

    /// Files in any object store, below a prefix. Reported paths begin with `url`.
    pub fn over(store: Arc<dyn ::object_store::ObjectStore>, prefix: Path, url: impl AsRef<str>) -> Self {
        let shown = url.as_ref().trim_end_matches('/').to_owned();
        Self { place: Place::Objects { store, prefix, shown } }
    }

    /// Opens the files at a URL: `file:DIRECTORY` or `memory:`. With the features of these names
    /// also `s3://BUCKET/PREFIX` (`s3`), `gs://BUCKET/PREFIX` (`gcs`) and `az://CONTAINER/PREFIX`
    /// (`azure`).
    ///
    /// Credentials come from the environment, under the names that each cloud's own tools use.
    ///
    /// # Errors
    /// `InvalidInput` for any other URL, or if its feature is not compiled in. Otherwise as
    /// [`directory`](Self::directory).
    pub async fn connect(url: &str) -> Result<Self> {
        let options = ConnectOptions::new(url)?;
        let location = options.url().location().trim_start_matches('/');
        match options.url().scheme() {
            "file" => Self::directory(options.url().path()?).await,
            "memory" if location.is_empty() => Ok(Self::memory()),
            "memory" => Err(Error::invalid("store URL", "names a place, `memory:` has none")),
            "s3" | "s3a" => s3(url),
            "gs" => gcs(url),
            "az" | "azure" | "abfs" | "abfss" => azure(url),
            _ => Err(Error::invalid("store URL", "has a scheme that is not known")
                .with_hint("There are `file`, `memory`, `s3`, `gs` and `az`")),
        }
    }
}

macro_rules! cloud {
    ($open:ident, $feature:literal, $builder:path) => {
        #[cfg(feature = $feature)]
        fn $open(url: &str) -> Result<ObjectStoreFiles> {
            let (prefix, url) = prefix(url)?;
            let store = <$builder>::from_env().with_url(url.as_str()).build().map_err(|source| {
                Error::invalid("store URL", "names no store that can be opened")
                    .with_hint("Set the region and the credentials in the environment")
                    .with_source(source)
            })?;
            Ok(ObjectStoreFiles::over(Arc::new(store), prefix, url))
        }

        #[cfg(not(feature = $feature))]
        fn $open(_: &str) -> Result<ObjectStoreFiles> {
            Err(Error::invalid("store URL", concat!("needs the feature `", $feature, "`"))
                .with_hint(concat!("Build ork-state-file with `--features ", $feature, "`")))
        }
    };
}

cloud!(s3, "s3", ::object_store::aws::AmazonS3Builder);
cloud!(gcs, "gcs", ::object_store::gcp::GoogleCloudStorageBuilder);
cloud!(azure, "azure", ::object_store::azure::MicrosoftAzureBuilder);

/// The part after the bucket, and the URL. Executors get the URL, so it must hold no secret.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn prefix(text: &str) -> Result<(Path, url::Url)> {
    let bad = |reason: &str| Error::invalid("store URL", reason);
    let url: url::Url = text.parse().map_err(|_| bad("is not a URL"))?;
    if url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has more than a bucket and a path")
            .with_hint("Set the credentials and the other options in the environment"));
    }
    let (_, prefix) = ::object_store::ObjectStoreScheme::parse(&url)
        .map_err(|source| bad("names no object store").with_source(source))?;
    Ok((prefix, url))
}

#[async_trait]
impl ObjectStore for ObjectStoreFiles {
    async fn write_spec(&self, spec: &LegacySpec) -> Result<()> {
        let key = Key { run: &spec.run_id, task: &spec.task_name, file: SPEC };
        self.place.put(key, files::print(spec)?).await
    }

    async fn read_spec(&self, run: &LegacyRunId, task: &LegacyTaskName) -> Result<LegacySpec> {
        let key = Key { run, task, file: SPEC };
        let Some(bytes) = self.place.get(key).await? else {
            return Err(Error::not_found(Entity::TaskSpec, self.place.shown(key))
                .with_hint("Write the spec before the task is run"));
        };
        let file = self.place.shown(key);
        let spec: LegacySpec = files::parse(&bytes, &file, "a task's spec")?;
        match (spec.run_id == *run, spec.task_name == *task) {
            (true, true) => Ok(spec),
            (false, _) => Err(files::misplaced(&file, "run_id")),
            (true, false) => Err(files::misplaced(&file, "task_name")),
        }
    }

    async fn write_status(
        &self,
        run: &LegacyRunId,
        task: &LegacyTaskName,
        status: &LegacyStatus,
    ) -> Result<()> {
        self.place.put(Key { run, task, file: STATUS }, files::print(status)?).await
    }

    async fn read_status(&self, run: &LegacyRunId, task: &LegacyTaskName) -> Result<Option<LegacyStatus>> {
        let key = Key { run, task, file: STATUS };
        let Some(bytes) = self.place.get(key).await? else { return Ok(None) };
        files::parse(&bytes, &self.place.shown(key), "a task's status").map(Some)
    }

    async fn write_output(&self, run: &LegacyRunId, task: &LegacyTaskName, output: &Json) -> Result<()> {
        self.place.put(Key { run, task, file: OUTPUT }, output.as_str().into()).await
    }

    async fn read_output(&self, run: &LegacyRunId, task: &LegacyTaskName) -> Result<Option<Json>> {
        let key = Key { run, task, file: OUTPUT };
        let Some(bytes) = self.place.get(key).await? else { return Ok(None) };
        files::parse(&bytes, &self.place.shown(key), "an output").map(Some)
    }

    fn task_dir(&self, run: &LegacyRunId, task: &LegacyTaskName) -> String {
        self.place.task_dir(run, task)
    }

    fn spec_path(&self, run: &LegacyRunId, task: &LegacyTaskName) -> String {
        self.place.shown(Key { run, task, file: SPEC })
    }

    fn output_path(&self, run: &LegacyRunId, task: &LegacyTaskName) -> String {
        self.place.shown(Key { run, task, file: OUTPUT })
    }
}
