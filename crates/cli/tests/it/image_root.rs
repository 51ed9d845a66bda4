//! Container images as the roots of machines.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use write_program::write_program;

use crate::{
    container::Engine,
    harness::{Belljar, Lab, WELL},
};

/// The archive of a root in which these programs are.
fn archive(lab: &Lab, programs: &[&str]) -> PathBuf {
    let (dir, tar) = (lab.path("image"), lab.path("image.tar"));
    for program in programs {
        let path = dir.join(program);
        fs::create_dir_all(path.parent().expect("directory")).expect("directory");
        write_program(&path, "");
    }
    let made = Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(&tar).arg(".").status();
    assert!(made.expect("tar is installed").success());
    tar
}

/// `belljar run` on the script's machine with an image of this archive, or of whatever this path is.
fn run<'a>(lab: &'a Lab, script: &str, image: &std::path::Path) -> Belljar<'a> {
    let kernel = lab.path("vmlinux");
    let root = format!("container:{}", image.display());
    lab.run_bare(script).args(["-v", "--kernel"]).args([kernel]).args(["--rootfs", &root])
}

#[test]
fn the_agent_is_the_first_process_where_nothing_else_is_said() {
    let lab = Lab::new();
    let image = archive(&lab, &["bin/sh", "sbin/init"]);
    for options in [&[][..], &["--access", "init"]] {
        let outcome = run(&lab, "[agent]\nagent\n", &image).args(options).sh("echo in; exit 7").go();
        outcome.code(7).says("in\n").complains("access: Belljar's init");
        assert!(!outcome.stderr.contains("belljar: init:"), "{}", outcome.stderr);
    }
}

#[test]
fn an_init_of_the_images_own_runs_where_that_is_asked_for() {
    let lab = Lab::new();
    let image = archive(&lab, &["bin/sh", "sbin/init"]);
    let script = |boot: &str| format!("[agent]\nagent pid1=off {boot}\n");
    let own = |boot: &str| run(&lab, &script(boot), &image).args(["--access", "initrd"]);
    let outcome = own("").sh("echo in; exit 7").go();
    outcome.code(7).says("in\n").complains("init: /sbin/init (the image has it)");
    outcome.complains("access: beside the image's init").complains("agetty waits for somebody to log in");
    let command = String::from_utf8_lossy(&outcome.kept("qemu.cmd")).into_owned();
    assert!(command.contains("serial=belljar-root") && command.contains("systemd.firstboot=no"), "{command}");
    own("").args(["--append", "init=/bin/sh"]).sh("true").go().code(0).complains("init: /bin/sh (init= says so)");
    own("").args(["--append", "init=sh"]).sh("true").go().code(125).complains("init=sh is no path");
    own("boot=emergency").sh("true").go().code(121).complains("the guest's init gave up, and started sulogin");
    own("boot=never")
        .args(["--boot-timeout", "4s"])
        .sh("true")
        .go()
        .code(124)
        .complains("boot did not come to its end");
    let silent =
        run(&lab, "[serial]\ndrain\n", &image).args(["--access", "initrd", "--boot-timeout", "4s"]).sh("true").go();
    silent.code(124).complains("was to start the image's own init, and to go on beside it, did not announce itself");
}

#[test]
fn an_init_of_the_images_own_finds_the_modules_on_a_disk_of_the_machines() {
    let lab = Lab::new();
    let image = archive(&lab, &["bin/sh", "sbin/init"]);
    let modules = lab.path("modules/6.1.0-fake");
    let built_in = |names: &[&str]| {
        let lines = names.iter().map(|name| format!("kernel/{name}.ko\n")).collect::<String>();
        fs::create_dir_all(modules.join("kernel")).expect("directory");
        fs::write(modules.join("modules.builtin"), lines).expect("list");
        fs::write(modules.join("modules.dep"), "").expect("list");
    };
    let of_root = ["erofs", "overlay", "virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "virtio_console"];
    let go = |access: &str| {
        let own = run(&lab, "[agent]\nagent pid1=off\n", &image).args(["--disk", "size=1M", "--modules"]);
        own.args([&modules]).args(["--access", access]).sh("true").go()
    };
    built_in(&[&of_root[..], &["virtio_scsi", "sd_mod"]].concat());
    let own = go("initrd");
    own.code(0).complains("disk of modules: ").complains("as a file system (made now): the guest's init finds them");
    let command = String::from_utf8_lossy(&own.kept("qemu.cmd")).into_owned();
    assert!(command.contains("serial=belljar-modules") && !command.contains("mount_tag=belljar-mod"), "{command}");
    // No disk that was asked for has another name for it: those on virtio come in their order, and this one is on SCSI.
    let at = |text: &str| command.find(text).unwrap_or_else(|| panic!("no {text} in {command}"));
    assert!(at("serial=belljar-root") < at("scsi-hd") && command.matches("virtio-blk").count() == 2, "{command}");
    go("initrd").code(0).complains("made by an earlier run");
    fs::write(modules.join("kernel/new.ko"), "new").expect("module");
    go("initrd").code(0).complains("made now");
    // Where the agent is the first process, a share does.
    let init = run(&lab, "[agent]\nagent\n", &image).args(["--modules"]).args([&modules]).sh("true").go();
    init.code(0);
    assert!(!init.stderr.contains("disk of modules"), "{}", init.stderr);
    built_in(&of_root);
    let later = go("initrd");
    later.code(0).complains("modules: when the guest has booted (the kernel has no virtio SCSI disk");
}

#[test]
fn an_init_that_is_not_there_is_told() {
    let lab = Lab::new();
    let image = archive(&lab, &["bin/sh"]);
    let outcome = run(&lab, "", &image).args(["--access", "initrd"]).sh("true").go();
    outcome.code(125).complains("has no init of its own that could run (looked for /sbin/init").complains("init=PATH");
    run(&lab, "", &image).args(["--access", "ssh"]).sh("true").go().code(2).complains("--access ssh needs --image");
    let of_dir = lab.run("").args(["--access", "initrd"]).sh("true").go();
    of_dir.code(2).complains("--access initrd does not go with --rootfs, which is a directory of this host's");
    of_dir
        .complains("with --rootfs container:/PATH/TO/DIR the directory is read into a file system of the guest's own");
    lab.run_bare("").args(["--access", "initrd"]).sh("true").go().code(2).complains("--access initrd needs --image or");
}

#[test]
fn an_init_that_nobody_goes_by_is_told() {
    let lab = Lab::new();
    let of_dir = lab.run(WELL).args(["--append", "quiet init=/bin/x"]).sh("exit 7").go();
    of_dir.code(7).complains("init=/bin/x has no effect, for Belljar's agent is this guest's first process");
    of_dir.complains("--rootfs container:DIR with --access initrd");
    let image = archive(&lab, &["bin/sh", "sbin/init"]);
    let of_image = run(&lab, "[agent]\nagent\n", &image).args(["--append", "init=/bin/x"]).sh("exit 7").go();
    of_image.code(7).complains("init=/bin/x has no effect").complains("with --access initrd");
}

#[test]
fn why_an_init_cannot_run_is_told() {
    let lab = Lab::new();
    let image = archive(&lab, &["bin/sh", "sbin/init"]);
    let said = "execute /sbin/init, the image's own first process: ENOEXEC (not an executable format): it is neither a program nor a script";
    let script = format!("[serial]\nwait qmp\nsleep 300\nsend \"belljar: fatal: {said}\\r\\n\"\nreset\n");
    let outcome = run(&lab, &script, &image).args(["--access", "initrd"]).sh("true").go();
    outcome.code(121).complains(&format!("Belljar's program in the guest said: {said}"));
}

#[test]
fn a_directory_is_a_root_until_anything_in_it_changes() {
    let lab = Lab::new();
    archive(&lab, &["bin/sh", "etc/deep/file"]);
    let dir = lab.path("image");
    let go = || run(&lab, "[agent]\nagent\n", &dir).sh("exit 7").go();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).expect("socket");
    go().code(7).complains("as a file system (made now").complains("passed over in the directory: socket (a socket)");
    go().code(7).complains("as a file system (made by an earlier run");
    fs::write(dir.join("etc/deep/file"), "changed").expect("file");
    go().code(7).complains("as a file system (made now");
    let no_root = run(&lab, "", &lab.path("workspace")).sh("true").go();
    no_root.code(125).complains("it is a directory that is no OCI layout, and no root either");
}

#[test]
fn an_archive_that_is_hostile_is_refused_and_nothing_of_it_is_made() {
    let lab = Lab::new();
    let outside = lab.path("outside");
    let tar = lab.path("image.tar");
    fs::create_dir_all(lab.path("image/bin")).expect("directory");
    fs::write(lab.path("image/bin/sh"), "").expect("program");
    let pack = |words: &[&str]| {
        let made =
            Command::new("tar").arg("-C").arg(lab.path("image")).args(["-P", "-cf"]).arg(&tar).args(words).status();
        assert!(made.expect("tar is installed").success());
    };
    pack(&["--transform", "s,bin/sh,../../outside,", "bin/sh"]);
    run(&lab, "", &tar).sh("true").go().code(125).complains("leads out of the tree");
    assert!(!outside.exists());
    fs::write(&tar, [7; 5000]).expect("file");
    run(&lab, "", &tar).sh("true").go().code(125).complains("it is no header of a tar archive");
    let packed = Command::new("sh")
        .args(["-c", "head -c 70000 /dev/zero | bzip2 >image.tar || printf BZh9 >image.tar"])
        .current_dir(lab.path(""))
        .status();
    assert!(packed.expect("sh").success());
    run(&lab, "", &tar).sh("true").go().code(125).complains("packed by bzip2, for which there is no decoder here");
    let roots = fs::read_dir(lab.path("cache/belljar")).expect("cache").flatten();
    let roots: Vec<_> =
        roots.map(|file| file.file_name()).filter(|name| name.to_string_lossy().contains("root-")).collect();
    assert!(roots.is_empty(), "{roots:?}");
}

#[test]
fn an_image_that_is_not_there_is_foreseen() {
    let lab = Lab::new();
    let kernel = lab.path("vmlinux");
    let guest = |name: &str, image: &str| {
        format!("[guests.{name}]\nrootfs = 'container:{image}'\nkernel = '{}'\n", kernel.display())
    };
    let there = archive(&lab, &["bin/sh"]).display().to_string();
    let config = guest("there", &there) + &guest("gone", "./no.tar");
    let suite = "[[suites]]\nname = 's'\ntests = 't'\nguests = ['there', 'gone']\n";
    let test = lab.path("workspace/t");
    write_program(&test, "#!/bin/sh\n");
    fs::write(lab.path("workspace/belljar.toml"), config + suite).expect("suite");
    let outcome = lab.belljar(["list"]).script(WELL).go();
    outcome.code(0).tells("no.tar").tells("there is no image").tells("(1 cannot run here)");
}

fn digest(path: &std::path::Path) -> String {
    let said = Command::new("sha256sum").arg(path).output().expect("sha256sum").stdout;
    String::from_utf8_lossy(&said).split(' ').next().expect("digest").to_owned()
}

/// An engine that has the image `img`, as `docker save` and `podman save` write it: the files of [`archive`].
fn engine<'a>(lab: &'a Lab, kind: &'static str) -> Engine<'a> {
    let layer = archive(lab, &["bin/sh", "etc/file"]);
    let diff = digest(&layer);
    let dir = lab.path("saved");
    fs::create_dir_all(&dir).expect("directory");
    fs::copy(&layer, dir.join("layer.tar")).expect("layer");
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=b"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{diff}"]}}}}"#
    );
    fs::write(dir.join("config.json"), config).expect("config");
    let id = digest(&dir.join("config.json"));
    fs::rename(dir.join("config.json"), dir.join(format!("{id}.json"))).expect("config");
    let manifest = format!(r#"[{{"Config":"{id}.json","RepoTags":["img:latest"],"Layers":["layer.tar"]}}]"#);
    fs::write(dir.join("manifest.json"), manifest).expect("manifest");
    let inspected = format!(
        r#"[{{"Id": "sha256:{id}", "Config": {{"User": "", "Env": ["A=b"]}}, "Architecture": "amd64", "RootFS": {{"Type": "layers", "Layers": ["sha256:{diff}"]}}}}]"#
    );
    let engine = Engine::new(lab, kind).file("inspected", &inspected);
    let saved = Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(engine.path("saved")).arg(".").status();
    assert!(saved.expect("tar is installed").success());
    engine
}

/// `belljar run` on a machine with the engine's image.
fn run_of_engine<'a>(lab: &'a Lab, engine: &Engine<'_>) -> Belljar<'a> {
    let words = [
        "-v".into(),
        "--kernel".into(),
        lab.path("vmlinux").into_os_string(),
        "--rootfs".into(),
        "container:img".into(),
    ];
    let words = words.into_iter().chain(["--engine".into(), engine.program().into_os_string()]);
    lab.run_bare("[agent]\nagent\n").args(words)
}

#[test]
fn an_image_of_an_engines_is_saved_once() {
    for kind in ["podman", "docker"] {
        let lab = Lab::new();
        let engine = engine(&lab, kind);
        let run = || run_of_engine(&lab, &engine).sh("exit 7").go();
        run().code(7).complains("the files of img, as a file system (made now)");
        run().code(7).complains("made by an earlier run");
        assert_eq!(engine.told("save sha256:"), 1, "{}", engine.calls());
    }
}

#[test]
fn an_engine_that_saves_nothing_good_is_told() {
    for kind in ["podman", "docker"] {
        let lab = Lab::new();
        let engine = engine(&lab, kind);
        let run = || run_of_engine(&lab, &engine).sh("exit 7").go();
        for (manner, says) in [
            ("save-cut", "unexpected EOF"),
            ("save-cut-quietly", "is no archive of an image"),
            ("save-full", "no space left on device"),
            ("save-gone", if kind == "docker" { "No such image" } else { "image not known" }),
            ("save-garbage", "it is no header of a tar archive"),
            ("save-nothing", "is no archive of an image"),
            ("nonsense", "cannot be read"),
        ] {
            engine.manner(manner);
            let outcome = run();
            outcome.code(125).complains(says);
            assert!(outcome.stderr.contains("img"), "{manner}: {}", outcome.stderr);
        }
        engine.manner("save-hang");
        let mut live = run_of_engine(&lab, &engine).sh("true").spawn();
        let saves = engine.told("save ");
        while engine.told("save ") == saves {
            assert!(live.still_there_after(Duration::from_millis(20)), "it ended before it asked");
        }
        live.signal(rustix::process::Signal::INT);
        live.end().code(130);
        engine.manner("");
        run().code(7).complains("as a file system (made now");
    }
}

#[test]
fn of_two_runs_one_makes_the_root_and_the_other_waits() {
    let lab = Lab::new();
    let engine = engine(&lab, "podman").file("manner", "save-slow");
    let spawn = || run_of_engine(&lab, &engine).sh("exit 7").spawn();
    let mut first = spawn();
    while engine.told("save ") == 0 {
        assert!(first.still_there_after(Duration::from_millis(20)), "it ended before it asked");
    }
    let mut second = spawn();
    let mut third = spawn();
    assert!(second.still_there_after(Duration::from_secs(2)) && third.still_there_after(Duration::ZERO));
    assert_eq!(engine.told("save "), 1, "the others wait");
    // Whoever waits for one that is killed goes on in its place.
    first.signal(rustix::process::Signal::KILL);
    let _killed = first.end_dirty();
    while engine.told("save ") == 1 {
        assert!(second.still_there_after(Duration::from_millis(20)), "it ended before it asked");
    }
    fs::write(engine.path("go"), "").expect("file");
    let (second, third) = (second.end_dirty(), third.end());
    let said = [&second.code(7).stderr, &third.code(7).stderr];
    assert_eq!(said.iter().filter(|said| said.contains("as a file system (made now")).count(), 1, "{said:?}");
    let waited = said.iter().filter(|said| said.contains("made by another run meanwhile, for which this one waited"));
    assert_eq!(waited.count(), 1, "{said:?}");
    assert_eq!(engine.told("save "), 2, "{}", engine.calls());
    let locks = fs::read_dir(lab.path("cache/belljar")).expect("cache").flatten();
    assert!(!locks.into_iter().any(|file| file.file_name().to_string_lossy().contains("making")), "no lock is left");
}

#[test]
fn an_image_on_disk_is_imported_by_the_engine() {
    for kind in ["podman", "docker"] {
        let lab = Lab::new();
        let engine = engine(&lab, kind);
        let image = lab.path("image");
        let belljar = || {
            let words = [
                "run".into(),
                "--engine".into(),
                engine.program().into_os_string(),
                "--container".into(),
                image.clone().into_os_string(),
            ];
            lab.belljar(words)
        };
        engine.manner("import-full");
        belljar().sh("true").go().code(125).complains("no space left on device");
        engine.manner("import-hang");
        let mut live = belljar().sh("true").spawn();
        let imports = engine.told("import ");
        while engine.told("import ") == imports {
            assert!(live.still_there_after(Duration::from_millis(20)), "it ended before it asked");
        }
        live.signal(rustix::process::Signal::INT);
        live.end().code(130);
        engine.manner("");
        belljar().sh("exit 7").go().code(7);
        belljar().sh("exit 7").go().code(7);
        let imports = engine.calls().lines().filter(|call| call.contains(" - belljar-image:")).count();
        assert_eq!(imports, 3, "{}", engine.calls());
        let listed = Command::new("tar").arg("-tf").arg(engine.path("imported")).output().expect("tar").stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        assert!(listed.contains("bin/sh") && listed.contains("etc/file"), "{listed}");
    }
}
