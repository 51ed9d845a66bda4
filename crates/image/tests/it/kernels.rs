//! The kernels installed on this host. Not every host has one, so that these run only when asked for:
//! `cargo test -p belljar-image -- --ignored`.

use belljar_image::boot::{BootFiles, InitSpec, root_over_9p};
use belljar_image::cache::Cache;
use belljar_image::kernel::{Arch, Kernel, Userland, discover};
use belljar_image::modules::{Feature, ModuleIndex, Presence};
use belljar_image::processor::Processor;

const X86_64: Processor =
    Processor { name: "x86_64", arch: Arch::X86_64, also_runs: &[Arch::X86], kernel_package: "linux-image-amd64" };

fn cache(dir: &tempfile::TempDir) -> Cache {
    let run = dir.path().join("run");
    std::fs::create_dir_all(&run).unwrap();
    Cache::new(dir.path().join("cache"), run)
}

fn boot(kernel: &Kernel, modules: &ModuleIndex, cache: &Cache) -> BootFiles {
    let spec = InitSpec {
        processor: &X86_64,
        agent: b"\x7fELF",
        modules: Some(modules),
        required: &[],
        wanted: &[Feature::VirtioNet, Feature::VirtioBlk],
    };
    root_over_9p(kernel, &spec, "belljar-root", cache).unwrap()
}

#[test]
#[ignore = "needs a generic kernel installed in /boot"]
fn the_newest_installed_kernel_boots_by_pvh_with_its_modules() {
    let found = discover(&["/".into()], &[&X86_64]);
    let chosen = found.choose(Userland::Directory, &X86_64).unwrap();
    let modules = chosen.modules.as_ref().unwrap();
    assert_ne!(modules.feature(Feature::NineP), Presence::Absent);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir);
    let first = boot(&chosen.kernel, modules, &cache);
    assert!(first.pvh, "{:?}", first.choices);
    // The kernel taken out says the same release as the one it was in.
    assert_eq!(Kernel::open(&first.kernel, &[&X86_64]).unwrap().release, chosen.kernel.release);
    let second = boot(&chosen.kernel, modules, &cache);
    assert_eq!((&first.kernel, &first.initrd), (&second.kernel, &second.initrd));
    assert!(second.choices.iter().any(|c| c.contains("earlier run")), "{:?}", second.choices);
}

#[test]
#[ignore = "needs a generic kernel installed in /boot with modules.dep"]
fn without_an_index_the_same_modules_are_found() {
    let found = discover(&["/".into()], &[&X86_64]);
    let indexed = found.choose(Userland::Directory, &X86_64).unwrap().modules.as_ref().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    // As a package that was unpacked and not installed; walking does not follow links.
    let copied =
        std::process::Command::new("cp").args(["-a", "--"]).arg(indexed.dir().join("kernel")).arg(&bare).status();
    assert!(copied.unwrap().success());
    let _ = std::fs::copy(indexed.dir().join("modules.builtin"), bare.join("modules.builtin"));
    let walked = ModuleIndex::load(&bare).unwrap();
    let names = |index: &ModuleIndex| {
        let wanted =
            Feature::ALL.iter().filter(|f| indexed.feature(**f) != Presence::Absent).flat_map(Feature::modules);
        let resolved = index.resolve(wanted.copied()).unwrap();
        assert_eq!(resolved.missing, [""; 0]);
        let mut names: Vec<_> = resolved.insert.into_iter().map(|m| m.name).collect();
        names.sort();
        names
    };
    // Soft dependencies are the index's own.
    let (indexed, walked) = (names(indexed), names(&walked));
    let more: Vec<&String> = walked.iter().filter(|n| !indexed.contains(n)).collect();
    assert!(more.is_empty(), "{more:?}");
    assert_eq!(walked.iter().any(|n| n == "9p"), indexed.iter().any(|n| n == "9p"));
}
