//! An image on disk, for a container: the engine imports its files, as one layer, under a name of Belljar's own.
//!
//! Engines differ in which archives they load. All of them import one of files, so that is what they get, whatever the image is kept in. What was imported is kept
//! like an image with a set-up, and goes when nobody has used it for as long.

use std::{ffi::OsString, fs::File, path::Path, time::Duration};

use belljar_image::cache;
use belljar_oci::image::Config;

use super::{
    engine::{Engine, EngineKind, words},
    keep, making,
    root::{NotMade, OnDisk, Store, architecture, lost},
};
use crate::{Cause, Lost, host::HostContext, lost::blocking};

/// The name of every image that was imported; its tag tells which.
const NAME: &str = "belljar-image";
/// How long an import may take: all files are copied.
const IMPORT_LIMIT: Duration = Duration::from_secs(1200);

/// Has the engine know an image that is on disk; gives the name by which it does. `dir` is for what no cache can take.
pub(crate) async fn import(engine: &Engine, path: &Path, (host, dir): (&HostContext, &Path)) -> Result<String, Lost> {
    let store = Store::new(host, dir);
    let (looked, from) = (store.clone(), path.to_owned());
    let on_disk = blocking("reading of an image", move || OnDisk::look(&from, &looked)).await?.map_err(lost)?;
    let cache = &host.cache_dir;
    let key = key(&on_disk)?;
    let found = keep::find(engine, cache, (NAME, &key)).await;
    if let Some((image, _)) = found.map_err(|error| engine.lost("look for an image that was imported", &error))? {
        return Ok(image);
    }
    let making = making::alone(cache, &format!("import-{key}"), &format!("an image of {}", on_disk.shown)).await?;
    if making.waited.is_some() {
        let found = keep::find(engine, cache, (NAME, &key)).await;
        if let Some((image, _)) = found.map_err(|error| engine.lost("look for an image that was imported", &error))? {
            return Ok(image);
        }
    }
    let arguments = arguments(engine.kind, &on_disk.config, keep::labels(cache, &on_disk.shown), &key);
    let attempt = format!("import the image {}", on_disk.shown);
    let archive = blocking("reading of an image", move || export(&on_disk, &store)).await?.map_err(lost)?;
    let archive = archive.map_err(|error| {
        let advice = "the cache must be writable and have room; BELLJAR_CACHE_DIR names another";
        Lost::from(Cause::host_file("put an image together", &error, advice))
    })?;
    let imported = engine.ask_with(arguments, archive, IMPORT_LIMIT).await;
    imported.map_err(|error| engine.lost(&attempt, &error))?;
    keep::note_use(cache, &key);
    drop(making);
    keep::prune(engine, cache).await;
    Ok(format!("{NAME}:{key}"))
}

/// The files of an image, in an archive that is read from its beginning.
fn export(on_disk: &OnDisk, store: &Store) -> Result<std::io::Result<File>, NotMade> {
    let image = on_disk.open(store)?;
    let files = || Ok((store.scratch()?, store.scratch()?));
    let (mut archive, scratch) = match files() {
        Ok(files) => files,
        Err(error) => return Ok(Err(error)),
    };
    image.export(&archive, &scratch)?;
    Ok(std::io::Seek::rewind(&mut archive).map(|()| archive))
}

/// What decides what the engine has then: the files, and what is said of processes.
fn key(on_disk: &OnDisk) -> Result<String, Lost> {
    let config = serde_json::to_vec(&on_disk.config)
        .map_err(|error| Cause::host_file("tell images apart", &error.into(), "this is a fault of Belljar's own"))?;
    let mut hasher = blake3::Hasher::new();
    for part in [on_disk.key.as_bytes(), &config] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Ok(cache::short(&hasher))
}

fn arguments(kind: EngineKind, config: &Config, labels: Vec<OsString>, key: &str) -> Vec<OsString> {
    let mut arguments = words(["import"]);
    let foreign = Some(&*config.architecture).filter(|arch| !arch.is_empty() && *arch != architecture());
    if let Some(arch) = foreign {
        arguments.extend(match kind {
            EngineKind::Podman => words(["--arch", arch]),
            EngineKind::Docker => words(["--platform", &format!("linux/{arch}")]),
        });
    }
    for (name, value) in config.env.iter().filter_map(|variable| variable.split_once('=')) {
        arguments.extend(keep::changed("ENV", name, value));
    }
    let said = [("USER", &config.user), ("WORKDIR", &config.working_dir)];
    for (instruction, value) in said.into_iter().filter_map(|(instruction, value)| {
        Some((instruction, value.as_ref().filter(|value| !value.contains(char::is_control))?))
    }) {
        arguments.extend(words(["--change", &format!("{instruction} {value}")]));
    }
    arguments.extend(labels);
    arguments.extend(words(["-", &format!("{NAME}:{key}")]));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_says_is_told_to_the_engine() {
        let config = Config::new("s390x".into(), vec!["A=b \"c\" $d".into()], Some("bob".into()), Some("/srv".into()));
        let said = |kind| {
            let all = arguments(kind, &config, Vec::new(), "k");
            all.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            said(EngineKind::Podman),
            [
                "import",
                "--arch",
                "s390x",
                "--change",
                "ENV A=\"b \\\"c\\\" \\$d\"",
                "--change",
                "USER bob",
                "--change",
                "WORKDIR /srv",
                "-",
                "belljar-image:k"
            ]
        );
        assert_eq!(said(EngineKind::Docker)[1..3], ["--platform", "linux/s390x"]);
    }
}
