//! What an engine says of an image.

use belljar_guest_spec::PullPolicy;
use belljar_image::kernel::Arch;
use serde::{Deserialize, Serialize};

use super::engine::{ASK_LIMIT, Engine, EngineError, says_missing, words};
use crate::{Cause, Lost};

/// How long fetching an image may take.
const PULL_LIMIT: std::time::Duration = std::time::Duration::from_secs(1800);

/// What matters of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    /// What the engine knows it by, whatever becomes of its name.
    pub(crate) id: String,
    /// Its processor, as `uname -m` names it; the engine's own word where that is not known.
    pub(crate) processor: String,
    /// Whom commands run as; none is root.
    pub(crate) user: Option<String>,
    /// The directory for commands.
    pub(crate) working_dir: Option<String>,
    /// Its variables, `NAME=VALUE`.
    pub(crate) env: Vec<String>,
    /// Its processor, as the engine names it.
    pub(crate) architecture: String,
    /// The digests of its layers, unpacked.
    pub(crate) layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    architecture: String,
    config: Option<Config>,
    #[serde(default, rename = "RootFS")]
    root: Option<Root>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Root {
    layers: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    user: Option<String>,
    working_dir: Option<String>,
    env: Option<Vec<String>>,
}

/// Looks at an image, and fetches it where that was asked for.
pub(crate) async fn look(engine: &Engine, image: &str, pull: PullPolicy) -> Result<Image, Lost> {
    if image.starts_with('-') || image.is_empty() {
        return Err(Lost::from(Cause::Description(format!("{image:?} is no name of an image"))).lasting());
    }
    if pull == PullPolicy::Always {
        fetch(engine, image).await?;
    }
    let mut inspected = inspect(engine, image).await;
    if matches!(&inspected, Err(EngineError::Refused(end)) if says_missing(&end.stderr)) {
        if pull == PullPolicy::Never {
            return Err(missing(engine, image));
        }
        fetch(engine, image).await?;
        inspected = inspect(engine, image).await;
    }
    let read = inspected.map_err(|error| engine.lost(&format!("look at the image {image}"), &error))?;
    read.map_err(|why| {
        let name = engine.name();
        let said = format!(
            "what {name} says of the image {image} cannot be read: {why}; see whether `{name} image inspect {image}` works"
        );
        Cause::Engine(said).into()
    })
}

fn missing(engine: &Engine, image: &str) -> Lost {
    let name = engine.name();
    let said = format!(
        "{name} has no image {image}; fetch it with `{name} pull {image}`, or have Belljar do that with `pull = \"missing\"` (--pull missing)"
    );
    Lost::from(Cause::Description(said)).lasting()
}

async fn fetch(engine: &Engine, image: &str) -> Result<(), Lost> {
    let fetched = engine.look(words(["pull", "--quiet", image]), PULL_LIMIT).await;
    fetched.map(drop).map_err(|error| engine.lost(&format!("fetch the image {image}"), &error))
}

async fn inspect(engine: &Engine, image: &str) -> Result<Result<Image, String>, EngineError> {
    let end = engine.look(words(["image", "inspect", image]), ASK_LIMIT).await?;
    Ok(if end.cut { Err("it is too long".to_owned()) } else { read(&end.stdout) })
}

/// Reads what `image inspect` says: the same keys of podman and docker.
fn read(json: &[u8]) -> Result<Image, String> {
    let all: Vec<Inspected> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let Some(Inspected { id, architecture, config, root }) = all.into_iter().next() else {
        return Err("it says nothing".to_owned());
    };
    if id.is_empty() {
        return Err("it has no id".to_owned());
    }
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let Config { user, working_dir, env } = config.unwrap_or_default();
    let processor = processor(&architecture);
    let user = some(user).filter(|user| !matches!(user.as_str(), "0" | "root" | "0:0" | "root:root"));
    let layers = root.and_then(|root| root.layers).unwrap_or_default();
    let (working_dir, env) = (some(working_dir).filter(|dir| dir.starts_with('/')), env.unwrap_or_default());
    Ok(Image { id, processor, user, working_dir, env, architecture, layers })
}

/// Processors in the words of the OCI's image specification (those of Go), as `uname -m` names them, and as ELF does.
const PROCESSORS: [(&str, &str, Arch); 7] = [
    ("386", "i686", Arch::X86),
    ("amd64", "x86_64", Arch::X86_64),
    ("arm64", "aarch64", Arch::Aarch64),
    ("arm", "armv7l", Arch::Elf(40)),
    ("ppc64le", "ppc64le", Arch::Elf(21)),
    ("riscv64", "riscv64", Arch::Riscv64),
    ("s390x", "s390x", Arch::Elf(22)),
];

/// A processor as `uname -m` names it, of the specification's word.
fn processor(architecture: &str) -> String {
    match PROCESSORS.iter().find(|(word, ..)| *word == architecture) {
        Some((_, name, _)) => name,
        // One that was imported may say nothing.
        None if architecture.is_empty() => std::env::consts::ARCH,
        None => architecture,
    }
    .to_owned()
}

/// The same as ELF has it, if it is one that is known.
pub(super) fn arch(architecture: &str) -> Option<Arch> {
    PROCESSORS.iter().find(|(word, ..)| *word == architecture).map(|(.., arch)| *arch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engines_say_is_read() {
        let podman = br#"[{"Id": "c831", "Config": {"User": "app:staff", "WorkingDir": "/srv", "Env": ["A=b"]}, "Architecture": "amd64", "User": "x",
            "RootFS": {"Type": "layers", "Layers": ["sha256:1", "sha256:2"]}}]"#;
        let image = Image {
            id: "c831".into(),
            processor: "x86_64".into(),
            user: Some("app:staff".into()),
            working_dir: Some("/srv".into()),
            env: vec!["A=b".into()],
            architecture: "amd64".into(),
            layers: vec!["sha256:1".into(), "sha256:2".into()],
        };
        assert_eq!(read(podman), Ok(image));
        let plain = br#"[{"Id": "sha256:c8", "Config": {"User": ""}, "Architecture": "arm64", "Variant": "v8"}]"#;
        let image = Image {
            id: "sha256:c8".into(),
            processor: "aarch64".into(),
            architecture: "arm64".into(),
            ..Image::default()
        };
        assert_eq!(read(plain), Ok(image));
        assert_eq!(read(br#"[{"Id": "a", "Config": null}]"#).unwrap().user, None);
        assert_eq!(read(br#"[{"Id": "a", "Config": {"User": "0:0"}}]"#).unwrap().user, None);
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for json in [&b""[..], b"[]", b"{}", b"[{}]", b"null", br#"[{"Id": ""}]"#, b"Error", br#"[{"Id": 7}]"#] {
            assert!(read(json).is_err(), "{}", String::from_utf8_lossy(json));
        }
    }
}
