//! The pretended QEMU, driven as Belljar drives it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, IoSlice, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use belljar_proto::{
    frame::{Assembler, Decoder, Encoder, Kind, MAX_MESSAGE},
    message::{Exec, Nonce, OutputEnd, Setup, SetupReport, Status, Stdio as Streams, ToAgent, ToHost, VERSION},
};
use command_fds::{CommandFdExt as _, FdMapping};

/// A machine under a script.
struct Machine {
    child: Child,
    console: UnixStream,
    agent: UnixStream,
    qmp: BufReader<UnixStream>,
    scratch: tempfile::TempDir,
}

const BASE: &str = "-nodefaults -no-user-config -display none -no-reboot \
    -chardev socket,id=console,fd=3 -device isa-serial,chardev=console \
    -chardev socket,id=agent,fd=4 -device virtio-serial-pci -device virtserialport,chardev=agent,name=belljar.agent \
    -chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control";

impl Machine {
    fn start(script: &str, more: &[&str]) -> Self {
        Self::start_with(script, more, Vec::new())
    }

    /// With these files as its descriptors 6, 7….
    fn start_with(script: &str, more: &[&str], files: Vec<File>) -> Self {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let file = scratch.path().join("script");
        fs::write(&file, script).expect("script");
        let (console, console_end) = UnixStream::pair().expect("pair");
        let (agent, agent_end) = UnixStream::pair().expect("pair");
        let (qmp, qmp_end) = UnixStream::pair().expect("pair");
        let map = |end: UnixStream, child_fd| FdMapping { parent_fd: OwnedFd::from(end), child_fd };
        let mut mappings = vec![map(console_end, 3), map(agent_end, 4), map(qmp_end, 5)];
        mappings.extend((6..).zip(files).map(|(child_fd, file)| FdMapping { parent_fd: file.into(), child_fd }));
        let child = Command::new(env!("CARGO_BIN_EXE_fake-qemu"))
            .args(BASE.split_whitespace())
            .args(more)
            .env("FAKE_QEMU_SCRIPT", file)
            .env("FAKE_QEMU_SCRATCH", scratch.path())
            .env("FAKE_QEMU_LOG", scratch.path().join("log"))
            .env("FAKE_QEMU_CHECK", "args")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .fd_mappings(mappings)
            .expect("descriptors")
            .spawn()
            .expect("fake QEMU starts");
        for socket in [&console, &agent, &qmp] {
            socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        }
        Self { child, console, agent, qmp: BufReader::new(qmp), scratch }
    }

    fn qmp(&mut self, line: &str) {
        self.qmp.get_mut().write_all(line.as_bytes()).expect("QMP takes a command");
    }

    fn qmp_line(&mut self) -> String {
        let mut line = String::new();
        self.qmp.read_line(&mut line).expect("QMP answers");
        line
    }

    /// Gives a command with a file.
    fn hand_over(&mut self, line: &str, file: &File) {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        let fds = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let socket = self.qmp.get_ref();
        sendmsg(socket, &[IoSlice::new(line.as_bytes())], &mut ancillary, SendFlags::empty()).expect("QMP takes it");
    }

    /// Reads until a line has this in it.
    fn qmp_until(&mut self, text: &str) -> String {
        loop {
            let line = self.qmp_line();
            assert!(!line.is_empty(), "{text:?} did not come; {}", self.log());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Gives commands that must be obeyed.
    fn obeyed(&mut self, commands: &[&str]) {
        for command in commands {
            self.qmp(command);
            self.qmp_until("\"return\"");
        }
    }

    /// Greets and negotiates.
    fn negotiate(&mut self) {
        assert!(self.qmp_line().starts_with(r#"{"QMP":"#));
        self.qmp(r#"{"execute":"qmp_capabilities"}"#);
        assert_eq!(self.qmp_line(), "{\"return\":{}}\r\n");
    }

    /// Reads the console until a text has come.
    fn console_until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let mut chunk = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains(text) {
            let count = self.console.read(&mut chunk).expect("console speaks");
            assert!(count > 0, "the console closed after {:?}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&chunk[..count]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    fn type_in(&mut self, text: &str) {
        self.console.write_all(text.as_bytes()).expect("console takes input");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }

    fn end(mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("stderr");
        stderr.read_to_string(&mut said).expect("stderr is text");
        (self.child.wait().expect("ended"), said)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A host of the agent's protocol, just enough.
struct Host<'a> {
    port: &'a mut UnixStream,
    decoder: Decoder,
    assembler: Assembler,
    encoder: Encoder,
    output: Vec<(Kind, Vec<u8>)>,
    rubbish: u64,
}

impl<'a> Host<'a> {
    fn new(port: &'a mut UnixStream) -> Self {
        let (decoder, assembler) = (Decoder::new(), Assembler::new(MAX_MESSAGE));
        Self { port, decoder, assembler, encoder: Encoder::new(0), output: Vec::new(), rubbish: 0 }
    }

    fn say(&mut self, message: &ToAgent) {
        let mut out = Vec::new();
        self.encoder.message(message, &mut out).expect("short");
        self.port.write_all(&out).expect("port takes");
    }

    /// The next message; none at the end of the port.
    fn hear(&mut self) -> Option<ToHost> {
        let mut chunk = [0; 65536];
        loop {
            while let Some(found) = self.decoder.next_frame() {
                match found {
                    Err(e) => self.rubbish += e.skipped,
                    Ok(frame) if matches!(frame.kind, Kind::Stdout | Kind::Stderr) => {
                        self.output.push((frame.kind, frame.payload));
                    }
                    Ok(frame) => {
                        if let Some(message) = self.assembler.push(&frame).expect("message") {
                            return Some(message);
                        }
                    }
                }
            }
            match self.port.read(&mut chunk).expect("port speaks") {
                0 => return None,
                count => self.decoder.push(&chunk[..count]),
            }
        }
    }

    fn greet(&mut self) {
        let Some(ToHost::Announce(announce)) = self.hear() else { panic!("no announcement") };
        assert_eq!(announce.version, VERSION);
        self.say(&ToAgent::Hello { version: VERSION, session: 77 });
        self.encoder = Encoder::new(77);
        while self.hear().expect("ready") != ToHost::Ready {}
        self.say(&ToAgent::Setup(Setup::default()));
        assert_eq!(self.hear(), Some(ToHost::SetupDone(SetupReport::default())));
    }

    fn exec(&mut self, argv: &[&str], stdio: Streams) {
        let argv = argv.iter().map(|a| a.as_bytes().to_vec()).collect();
        let exec = Exec {
            id: 1,
            nonce: Nonce([9; 16]),
            argv,
            env: vec![b"GREETING=hello".to_vec()],
            clear_env: false,
            cwd: None,
            user: None,
            stdio,
            guards: None,
        };
        self.say(&ToAgent::Exec(Box::new(exec)));
    }

    fn stream(&self, kind: Kind) -> Vec<u8> {
        self.output.iter().filter(|(k, _)| *k == kind).flat_map(|(_, b)| b.clone()).collect()
    }
}

#[test]
fn qmp_as_qemu_speaks_it() {
    let mut machine = Machine::start("[serial]\n", &[]);
    assert!(machine.qmp_line().contains(r#""major":8"#));
    machine.qmp(r#"{"execute":"query-status"}"#);
    assert!(machine.qmp_line().contains("Expecting capabilities negotiation"));
    machine.qmp("{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"frob\",\"id\":7}");
    assert_eq!(machine.qmp_line(), "{\"return\":{}}\r\n");
    let refused = machine.qmp_line();
    assert!(refused.contains(r#""class":"CommandNotFound""#) && refused.contains(r#""id":7"#), "{refused}");
    machine.qmp(r#"{"execute":"query-st"#);
    machine.qmp(r#"atus"}"#);
    assert!(machine.qmp_line().contains(r#""status":"running""#));
    machine.qmp("{\"execute\": oops}\n");
    assert!(machine.qmp_line().contains("JSON parse error"));
    machine.qmp(r#"{"execute":"quit","id":"bye"}"#);
    let event = machine.qmp_line();
    assert!(event.contains("SHUTDOWN") && event.contains("host-qmp-quit"), "the event comes first: {event}");
    assert!(machine.qmp_line().contains(r#""id":"bye""#));
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn a_stopped_machine_waits() {
    let mut machine = Machine::start("[serial]\nsend \"on\"\n", &["-S"]);
    machine.negotiate();
    machine.qmp(r#"{"execute":"query-status"}"#);
    assert!(machine.qmp_line().contains("prelaunch"));
    machine.qmp(r#"{"execute":"cont"}"#);
    assert!(machine.qmp_line().contains("RESUME"));
    assert!(machine.qmp_line().contains("return"));
    machine.console_until("on");
    machine.qmp(r#"{"execute":"system_powerdown"}"#);
    assert!(machine.qmp_line().contains("POWERDOWN"));
    assert!(machine.qmp_line().contains("return"));
    assert!(machine.qmp_line().contains("guest-shutdown"));
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn a_shell_on_the_line_is_a_real_one() {
    let mut machine = Machine::start("[serial]\nshell prompt=\"\\e[31m$\\e[0m \"\n", &[]);
    machine.console_until("\x1b[31m$\x1b[0m ");
    machine.type_in("echo $((6*7))-x\n");
    let seen = machine.console_until("42-x\r\n");
    assert!(seen.contains("echo $((6*7))-x\r\n"), "echoed: {seen}");
    // Longer than a terminal's line: the kernel's line discipline cuts it.
    machine.type_in(&format!("echo {} | wc -c\n", "y".repeat(5000)));
    machine.type_in("echo end-$((1+1))\n");
    let seen = machine.console_until("end-2");
    assert!(!seen.contains("\r\n5001\r\n"), "nothing that long comes through");
}

#[test]
fn what_a_shell_does_to_the_machine_stays_in_it() {
    let mut machine = Machine::start("[serial]\nshell\n", &[]);
    machine.negotiate();
    machine.console_until("# ");
    machine.type_in("mkdir /run/belljar-was-here; kill -9 -1; kill -0 1; echo alive-$((1+1))\n");
    let seen = machine.console_until("alive-2");
    assert_eq!(seen.matches("not permitted").count(), 2, "{seen}");
    machine.type_in("poweroff\n");
    assert!(machine.qmp_line().contains("guest-shutdown"));
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn login_takes_only_the_right_password() {
    let mut machine = Machine::start("[serial]\nlogin user=root password=secret prompt=\"@ \"\n", &[]);
    machine.console_until("login: ");
    machine.type_in("root\nwrong\n");
    let seen = machine.console_until("login: ");
    assert!(seen.contains("Login incorrect") && !seen.contains("wrong"), "{seen}");
    machine.type_in("root\n");
    machine.console_until("Password: ");
    machine.type_in("secret\n");
    machine.console_until("@ ");
    machine.type_in("echo $((40+2))\n");
    machine.console_until("42");
}

#[test]
fn tracks_wait_for_each_other_and_for_the_guest() {
    let script = "[serial]\nshell\nwait oops\nsend \"Kernel panic - not syncing\"\npanicked\n[machine]\nwait shell\n";
    let mut machine = Machine::start(script, &[]);
    machine.negotiate();
    machine.console_until("# ");
    machine.type_in("mark oops\n");
    machine.console_until("Kernel panic");
    assert!(machine.qmp_line().contains("GUEST_PANICKED"));
    assert!(machine.qmp_line().contains("guest-panic"));
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn the_agent_runs_commands() {
    let mut machine = Machine::start("[agent]\nagent\n", &[]);
    let mut host = Host::new(&mut machine.agent);
    host.greet();
    host.exec(&["sh", "-c", "cat; echo $GREETING >&2; exit 7"], Streams::Pipes);
    assert!(matches!(host.hear(), Some(ToHost::Started { id: 1, .. })));
    let bytes: Vec<u8> = (0..=255).collect();
    let mut out = Vec::new();
    host.encoder.bytes(Kind::Stdin, 1, &bytes, &mut out);
    host.port.write_all(&out).expect("port takes");
    assert_eq!(host.hear(), Some(ToHost::StdinCredit { id: 1, bytes: 256 }));
    host.say(&ToAgent::StdinEof(1));
    let exited = ToHost::Exited { id: 1, nonce: Nonce([9; 16]), status: Status::Code(7), output: OutputEnd::Whole };
    assert_eq!(host.hear(), Some(exited));
    assert_eq!(host.stream(Kind::Stdout), bytes);
    assert_eq!(host.stream(Kind::Stderr), b"hello\n");
    host.exec(&["sh", "-c", "kill -9 $$"], Streams::PipesNoStdin);
    host.hear();
    let killed = Status::Signal { signal: 9, core: false };
    assert_eq!(
        host.hear(),
        Some(ToHost::Exited { id: 1, nonce: Nonce([9; 16]), status: killed, output: OutputEnd::Whole })
    );
    host.exec(&["no-such-program"], Streams::PipesNoStdin);
    assert_eq!(host.hear(), Some(ToHost::ExecFailed { id: 1, what: "find no-such-program".into(), errno: 2 }));
    host.say(&ToAgent::Shutdown(belljar_proto::message::ShutdownHow::Immediate));
    assert_eq!(host.hear(), Some(ToHost::Ending));
    assert_eq!(machine.end().0.code(), Some(0));
}

#[test]
fn the_agent_misbehaves_as_told() {
    let mut machine = Machine::start("[agent]\nagent nonce=wrong exited=twice garbage=40\n", &[]);
    let mut host = Host::new(&mut machine.agent);
    host.greet();
    host.exec(&["true"], Streams::PipesNoStdin);
    host.hear();
    let Some(ToHost::Exited { nonce, .. }) = host.hear() else { panic!("no end") };
    assert_ne!(nonce, Nonce([9; 16]));
    assert!(matches!(host.hear(), Some(ToHost::Exited { .. })));
    assert!(host.rubbish >= 40, "{}", host.rubbish);

    let mut machine = Machine::start("[agent]\nagent eof-after=3\n", &[]);
    let mut host = Host::new(&mut machine.agent);
    host.greet();
    host.exec(&["true"], Streams::PipesNoStdin);
    assert!(matches!(host.hear(), Some(ToHost::Started { .. })));
    assert_eq!(host.hear(), None, "the port closes in the middle of a frame");
    assert!(host.decoder.pending() > 0);
}

#[test]
fn errors_at_the_start() {
    let machine = Machine::start("[start]\nstderr \"Failed to get \\\"write\\\" lock\"\nexit 1\n", &[]);
    let (status, said) = machine.end();
    assert_eq!((status.code(), said.as_str()), (Some(1), "Failed to get \"write\" lock\n"));
    let (status, said) = Machine::start("", &["-device", "warp-drive"]).end();
    assert_eq!(status.code(), Some(70));
    assert!(said.contains("'warp-drive' is not a valid device"), "{said}");
    let (status, said) = Machine::start("", &["-frob"]).end();
    assert_eq!((status.code(), said.as_str()), (Some(1), "qemu-system-x86_64: -frob: invalid option\n"));
    let (status, said) = Machine::start("[serial]\nfrob\n", &[]).end();
    assert_eq!(status.code(), Some(70));
    assert!(said.contains("script line 2: no verb is called `frob`"), "{said}");
}

#[test]
fn it_dies_as_told() {
    use std::os::unix::process::ExitStatusExt as _;
    let machine = Machine::start("[machine]\nsignal 11\n", &[]);
    assert_eq!(machine.end().0.signal(), Some(11));
    let mut machine = Machine::start("[options]\nsigterm obey\n[serial]\nsend up\n", &[]);
    machine.console_until("up");
    let pid = rustix::process::Pid::from_child(&machine.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    let (status, said) = machine.end();
    assert_eq!(status.code(), Some(0));
    assert!(said.contains("terminating on signal 15"), "{said}");
}

#[test]
fn nothing_is_left_of_a_killed_machine() {
    let mut machine = Machine::start("[serial]\nshell\n", &[]);
    machine.console_until("# ");
    machine.type_in("echo pid-$((1+1))-$$-end$((1+1))\n");
    let seen = machine.console_until("-end2");
    let pid = seen.split("pid-2-").nth(1).and_then(|t| t.split('-').next()).expect("pid").to_owned();
    machine.child.kill().expect("killed");
    let log = machine.log();
    let mut waited = 0;
    // A zombie has no command line any more; whoever inherits it reaps it.
    while fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty()) {
        std::thread::sleep(Duration::from_millis(5));
        waited += 1;
        assert!(waited < 2000, "the shell is still there: {log}");
    }
}

#[test]
fn questions_are_answered() {
    let ask = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_fake-qemu")).args(args).output().expect("runs");
        assert!(out.status.success());
        String::from_utf8(out.stdout).expect("text")
    };
    assert!(ask(&["--version"]).starts_with("QEMU emulator version 8.2.0"));
    assert!(ask(&["-device", "help"]).contains("virtserialport"));
}

const STOP: &str = r#"{"execute":"stop"}"#;
const CONT: &str = r#"{"execute":"cont"}"#;
const MIGRATE: &str = r#"{"execute":"migrate","arguments":{"uri":"fd:state"}}"#;
const GETFD: &str = r#"{"execute":"getfd","arguments":{"fdname":"state"}}"#;
const LOAD: &str = r#"{"execute":"migrate-incoming","arguments":{"uri":"fd:7"}}"#;
const CAPABILITIES: &str = r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[
    {"capability":"x-ignore-shared","state":true},{"capability":"events","state":true}]}}"#;

/// A machine with this file, which is descriptor 6, for its memory.
fn with_memory(script: &str, share: &str, files: Vec<File>) -> Machine {
    let ram = format!("memory-backend-file,id=ram,size=1048576,mem-path=/proc/self/fd/6,share={share}");
    let mut more = vec!["-object", &ram, "-machine", "pc,memory-backend=ram", "-m", "1M"];
    if share == "off" {
        more.extend(["-incoming", "defer"]);
    }
    Machine::start_with(script, &more, files)
}

/// Freezes a guest that has put a word into its home; gives its memory and its state.
fn frozen(word: &str) -> (File, File) {
    let (ram, mut state) = (tempfile::tempfile().expect("file"), tempfile::tempfile().expect("file"));
    ram.set_len(1 << 20).expect("size");
    let mut machine = with_memory("[agent]\nagent\n", "on", vec![ram.try_clone().expect("file")]);
    machine.negotiate();
    let mut host = Host::new(&mut machine.agent);
    host.greet();
    host.exec(&["sh", "-c", &format!("echo {word} > $HOME/word")], Streams::PipesNoStdin);
    assert!(matches!(host.hear(), Some(ToHost::Started { .. })));
    assert!(matches!(host.hear(), Some(ToHost::Exited { .. })));
    host.say(&ToAgent::Quiesce(belljar_proto::message::Quiesce::default()));
    assert_eq!(host.hear(), Some(ToHost::Quiesced(Vec::new())));
    machine.obeyed(&[STOP, CAPABILITIES]);
    machine.qmp(MIGRATE);
    assert!(machine.qmp_until("\"error\"").contains("named 'state' has not been found"));
    machine.hand_over(GETFD, &state);
    machine.qmp_until("\"return\"");
    machine.qmp(MIGRATE);
    machine.qmp_until("\"completed\"");
    std::io::Seek::rewind(&mut state).expect("rewound");
    (ram, state)
}

#[test]
fn a_frozen_machine_goes_on_elsewhere() {
    let (ram, state) = frozen("there");
    let mut machine = with_memory("[agent]\nagent\n", "off", vec![ram, state]);
    machine.negotiate();
    machine.obeyed(&[CAPABILITIES]);
    machine.qmp(LOAD);
    machine.qmp_until("\"completed\"");
    machine.qmp(r#"{"execute":"query-status"}"#);
    assert!(machine.qmp_until("\"return\"").contains("paused"), "as it was frozen");
    machine.obeyed(&[CONT]);
    let mut host = Host::new(&mut machine.agent);
    // It announces itself to nobody, and knows another host by its greeting.
    host.say(&ToAgent::Hello { version: VERSION, session: 78 });
    assert_eq!(host.hear(), Some(ToHost::Ready));
    host.exec(&["sh", "-c", "cat $HOME/word"], Streams::PipesNoStdin);
    assert!(matches!(host.hear(), Some(ToHost::Started { .. })));
    assert!(matches!(host.hear(), Some(ToHost::Exited { .. })));
    assert_eq!(host.stream(Kind::Stdout), b"there\n");
}

#[test]
fn a_state_belongs_to_one_memory() {
    let ((ram, _), (_, state)) = (frozen("one"), frozen("other"));
    let mut machine = with_memory("", "off", vec![ram, state]);
    machine.negotiate();
    machine.obeyed(&[CAPABILITIES]);
    machine.qmp(LOAD);
    machine.qmp_until("\"failed\"");
    let (status, said) = machine.end();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("load of migration failed"), "{said}");
}

#[test]
fn what_cannot_be_frozen_is_refused() {
    let ram = tempfile::tempfile().expect("file");
    ram.set_len(1 << 20).expect("size");
    let shares = tempfile::tempdir().expect("directory");
    let share = format!("local,id=s,path={}", shares.path().display());
    let more = ["-fsdev", &share, "-device", "virtio-9p-pci,fsdev=s,mount_tag=tag"];
    let mut machine = Machine::start("[agent]\nagent\n", &more);
    machine.negotiate();
    let mut host = Host::new(&mut machine.agent);
    host.greet();
    let mount = belljar_proto::message::Mount {
        name: "tag".into(),
        sources: vec![belljar_proto::message::Source::NineP { tag: "tag".into() }],
        path: "/mnt/x".into(),
        mode: belljar_proto::message::MountMode::ReadWrite,
    };
    host.say(&ToAgent::Setup(Setup { mounts: vec![mount], ..Setup::default() }));
    assert_eq!(host.hear(), Some(ToHost::SetupDone(SetupReport::default())));
    machine.hand_over(GETFD, &ram);
    machine.qmp_until("\"return\"");
    machine.qmp(MIGRATE);
    assert!(machine.qmp_until("\"error\"").contains("mount_tag 'tag'"));
    // Too short a file is no memory.
    ram.set_len(4096).expect("size");
    let (status, said) = with_memory("", "on", vec![ram]).end();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("does not match 'size' option 0x100000"), "{said}");
}
