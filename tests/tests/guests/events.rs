//! Watchers in a guest hear of the host's changes: inotifywait and entr, with `gangplankd --events`
//! and `gangplank-guest watch`, and an ordinary user's daemon. The guest is User Mode Linux, and
//! QEMU 10.0, which also moves to another QEMU with another daemon.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::driver::fixture::guest_processes;
use gangplank_tests::guest::{Guest, Machine, Options, Qemu};
use gangplank_tests::harmless_signals::SILENT;
use gangplank_tests::packages::{self, Arch};
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;
use gangplank_tests::{cache, tools};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Limit for what usually takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(60);

/// Time between two edits.
const PAUSE: Duration = Duration::from_millis(300);

/// When an edit counts as missed by a watcher that was not looking.
const RETRY: Duration = Duration::from_secs(5);

/// Limit from the host's edit to the end of the program that entr runs, where nothing else is slow.
const REBUILT: Duration = Duration::from_secs(1);

/// How long the log of events must not grow after the last change: no event is made by another's
/// being told.
const SILENCE: Duration = Duration::from_millis(1500);

/// A guest with watchers.
struct Watched {
    guest: Guest,
    machine: Machine,
    daemon: Daemon,
    tools: Daemon,
    share: TempDir,
}

/// What a User Mode Linux guest does, in this order.
const UML: &[(&str, Case)] = &[
    ("an_editor_on_the_host_wakes_entr", entr),
    ("inotify_tells_what_the_host_does", inotify),
    ("a_flood_loses_nothing_without_a_rescan", flood),
    ("signals_that_mean_nothing_end_no_program", harmless_signals),
    ("watchers_survive_the_worker", killed_worker),
    ("watchers_survive_a_reload", reloaded),
    ("the_program_ends_when_it_is_killed", ended),
];

/// What a QEMU guest does. It is emulated, and too slow for a flood.
const QEMU: &[(&str, Case)] = &[
    ("an_editor_on_the_host_wakes_entr", entr),
    ("inotify_tells_what_the_host_does", inotify),
    ("watchers_survive_the_worker", killed_worker),
    ("watchers_survive_a_reload", reloaded),
    ("watchers_survive_a_migration", migrated),
    ("the_program_ends_when_it_is_killed", ended),
];

/// What an emulated guest of the other architecture does: its program is another one.
const AARCH64: &[(&str, Case)] = &[
    ("inotify_tells_what_the_host_does", inotify),
    ("the_program_ends_when_it_is_killed", ended),
];

type Case = fn(&mut Watched) -> Result<()>;

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    run(&mut runner, "uml", Machine::Uml, UML);
    run(&mut runner, "qemu", Machine::QemuX86_64, QEMU);
    run(&mut runner, "aarch64", Machine::QemuAarch64, AARCH64);
    runner.finish()
}

fn run(runner: &mut Runner, prefix: &str, machine: Machine, cases: &[(&str, Case)]) {
    let cases = cases
        .iter()
        .map(|(name, case)| (format!("{prefix}::{name}"), *case));
    let cases: Vec<(String, Case)> = cases.collect();
    if !cases.iter().any(|(name, _)| runner.wants(name)) {
        if runner.lists_only() {
            cases
                .iter()
                .for_each(|(name, _)| runner.run(name, || Ok(())));
        }
        return;
    }
    match Watched::start(machine) {
        Ok(mut watched) => {
            for (name, case) in cases {
                runner.run(&name, || case(&mut watched).with_context(|| watched.logs()));
            }
        }
        Err(error) => {
            let (name, _) = &cases[0];
            runner.run(name, || Err(error));
        }
    }
}

/// A directory with the watchers and their libraries.
fn watchers(arch: Arch) -> Result<PathBuf> {
    cache::once(&format!("watchers-{}", arch.debian()), |tree| {
        let tools = ["inotify-tools", "entr", "busybox-static"];
        packages::unpack_closure(&tools, arch, tree)?;
        for name in ["dev", "mnt"] {
            fs::create_dir_all(tree.join(name)).context("making a mount point")?;
        }
        Ok(())
    })
}

/// A daemon for the share, and one for the directory with the watchers.
fn daemons(share: &Path, arch: Arch) -> Result<(Daemon, Daemon)> {
    // A guest that moves remembers files that are gone, until it forgets them.
    let arguments = ["--events", "--migration-on-error=guest-error"];
    let mut options = daemon::Options::new(share).arguments(&arguments);
    if User::is_root() {
        options = options.user(User::NOBODY);
    }
    let daemon = Daemon::start(&options)?;
    let tools = daemon::Options::new(&watchers(arch)?).tag("tools");
    let tools = Daemon::start(&tools.arguments(&["--readonly"]))?;
    Ok((daemon, tools))
}

fn options(machine: Machine, daemon: &Daemon, tools: &Daemon) -> Result<Options> {
    let program = tools::guest(machine.arch())?;
    let options = Options::new(machine)
        .share(daemon.socket(), TAG)
        .share(tools.socket(), "tools")
        .program("gangplank-guest", &program);
    let qemu = match machine {
        Machine::QemuX86_64 => Qemu::Backports,
        Machine::Uml | Machine::QemuAarch64 => Qemu::Host,
    };
    Ok(Options { qemu, ..options })
}

impl Watched {
    fn start(machine: Machine) -> Result<Self> {
        let share = tempfile::tempdir()?;
        fs::create_dir(share.path().join("src"))?;
        if User::is_root() {
            let user = User::NOBODY;
            for path in [share.path().to_owned(), share.path().join("src")] {
                chown(path, Some(user.uid), Some(user.gid))?;
            }
        }
        let (daemon, tools) = daemons(share.path(), machine.arch())?;
        let options = options(machine, &daemon, &tools)?;
        let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
        guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
        guest.sh(
            "mkdir /tools && mount -t virtiofs tools /tools && mount --bind /mnt /tools/mnt && \
            mount --bind /dev /tools/dev",
        )?;
        let mut watched = Self {
            guest,
            machine,
            daemon,
            tools,
            share,
        };
        watched.watch()?;
        Ok(watched)
    }

    /// Starts the program that wakes watchers.
    fn watch(&mut self) -> Result<()> {
        let watch = "gangplank-guest watch --verbose /mnt >/tmp/watch.log 2>&1 & echo $! >/tmp/pid";
        self.guest.sh(watch)?;
        self.wait_in("/tmp/watch.log", "rescan").map(drop)
    }

    fn host(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }

    /// Waits until a file of the guest has a line, and returns all its lines.
    fn wait_in(&mut self, file: &str, line: &str) -> Result<Vec<String>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let text = self.guest.sh(&format!("cat {file}"))?;
            if text.lines().any(|one| one == line) {
                return Ok(text.lines().map(str::to_owned).collect());
            }
            if Instant::now() > deadline {
                bail!("{file} has no '{line}':\n{text}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Makes a file on the host, and waits until the program and the watcher of its directory have
    /// heard of it.
    fn wake(&mut self, name: &str) -> Result<()> {
        fs::write(self.host(&format!("src/{name}")), "x")?;
        self.wait_in("/tmp/watch.log", &format!("created src/{name}"))?;
        self.wait_in("/tmp/inotify.log", &format!("CREATE {name}"))
            .map(drop)
    }

    /// Edits until entr has run its program, which makes the file `ran`. Returns how long that
    /// took.
    fn run_entr(&self, mut edit: impl FnMut() -> Result<()>) -> Result<Duration> {
        let (ran, begun) = (self.host("ran"), Instant::now());
        while begun.elapsed() < LIMIT {
            // entr hears of nothing while it runs its program or looks for a file again.
            thread::sleep(PAUSE);
            let edited = Instant::now();
            edit()?;
            while edited.elapsed() < RETRY {
                if ran.exists() {
                    let took = edited.elapsed();
                    fs::remove_file(ran)?;
                    return Ok(took);
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        bail!("entr has not run its program")
    }

    /// Waits until nothing more is told.
    fn wait_for_silence(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut told = String::new();
        loop {
            let before = told;
            told = self.guest.sh("wc -l </tmp/watch.log")?;
            if told == before {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "there is no end of events");
            thread::sleep(SILENCE);
        }
    }

    /// Fails if the program changes a file's times when it tells of a change.
    fn changes_nothing(&mut self, name: &str) -> Result<()> {
        let path = self.host(name);
        rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o600))?;
        let before = fs::metadata(&path)?;
        self.wait_in("/tmp/watch.log", &format!("attributes {name}"))?;
        let told = format!("ATTRIB {}", name.trim_start_matches("src/"));
        self.wait_in("/tmp/inotify.log", &told)?;
        let after = fs::metadata(&path)?;
        ensure!(
            (after.ctime_nsec(), after.mtime_nsec()) == (before.ctime_nsec(), before.mtime_nsec()),
            "the file is not as the host has left it"
        );
        Ok(())
    }

    fn logs(&mut self) -> String {
        let log = self
            .guest
            .sh("tail -n 40 /tmp/watch.log /tmp/inotify.log /tmp/entr.log");
        format!("{}\n{}", self.daemon.log(), log.unwrap_or_default())
    }
}

/// Replaces a file as editors do.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, path)?)
}

/// A real watcher runs its program when the host changes a file, or replaces it, again and again.
fn entr(watched: &mut Watched) -> Result<()> {
    let path = watched.host("src/main.c");
    fs::write(&path, "first\n")?;
    watched.guest.sh(
        "cd /tmp; echo /mnt/src/main.c | chroot /tools entr -np /bin/busybox touch /mnt/ran \
         >/tmp/entr.log 2>&1 & sleep 1",
    )?;
    let append = || -> Result<()> {
        let mut file = File::options().append(true).open(&path)?;
        Ok(writeln!(file, "more")?)
    };
    let mut times = Vec::new();
    for _ in 0..5 {
        times.push(watched.run_entr(append)?);
    }
    times.sort();
    eprintln!(
        "entr runs its program {:?} after the host's edit (median of 5); 200 ms is the goal on a \
         machine with nothing else to do",
        times[2]
    );
    // A busy machine delays some of them. The emulated one takes longer by itself.
    ensure!(
        watched.machine != Machine::Uml || times[0] < REBUILT,
        "{times:?}"
    );
    for _ in 0..2 {
        let replaced = watched.run_entr(|| replace(&path, "replaced\n"));
        replaced.context("after the file was replaced")?;
        watched
            .run_entr(append)
            .context("after an edit of the new file")?;
    }
    // What wakes entr is no further edit.
    watched.wait_for_silence()?;
    let _ = fs::remove_file(watched.host("ran"));
    thread::sleep(SILENCE);
    ensure!(!watched.host("ran").exists(), "entr runs without an edit");
    watched.guest.sh("pkill entr; true").map(drop)
}

/// No signal that means nothing ends the program. It writes its status where somebody asks for it.
fn harmless_signals(watched: &mut Watched) -> Result<()> {
    watched.guest.sh(&format!(
        "for signal in {SILENT} USR1 HUP; do kill -$signal $(cat /tmp/pid) || exit; done"
    ))?;
    watched.wake("after-signals")?;
    let log = watched.guest.sh("cat /tmp/watch.log")?;
    let told = log.lines().filter(|line| line.contains("status: /mnt: "));
    ensure!(told.count() == 2, "{log}");
    Ok(())
}

/// A watcher of a directory is told what happens in it, by the kinds of events that the guest's own
/// changes would raise, and the files stay as the host has made them.
fn inotify(watched: &mut Watched) -> Result<()> {
    watched
        .guest
        .sh("chroot /tools inotifywait -m --format '%e %f' /mnt/src >/tmp/inotify.log 2>&1 &")?;
    watched.wait_in("/tmp/inotify.log", "Watches established.")?;
    let file = watched.host("src/new");
    fs::write(&file, "new")?;
    watched.wait_in("/tmp/inotify.log", "CREATE new")?;
    watched.wait_in("/tmp/inotify.log", "CLOSE_WRITE,CLOSE new")?;
    watched.wait_in("/tmp/inotify.log", "MODIFY new")?;
    rustix::fs::chmod(&file, rustix::fs::Mode::from_raw_mode(0o600))?;
    let (changed, modified) = (
        fs::metadata(&file)?.ctime_nsec(),
        fs::metadata(&file)?.mtime_nsec(),
    );
    watched.wait_in("/tmp/inotify.log", "ATTRIB new")?;
    let mode = watched.guest.sh("stat -c %a /mnt/src/new")?;
    ensure!(mode == "600\n", "the guest sees mode {mode}");

    // What the guest does itself is told once, by its kernel.
    watched.guest.sh("echo own >/mnt/src/own && sync")?;
    fs::create_dir(watched.host("src/sub"))?;
    std::os::unix::fs::symlink("new", watched.host("src/link"))?;
    watched.wait_in("/tmp/inotify.log", "CREATE,ISDIR sub")?;
    watched.wait_in("/tmp/inotify.log", "CREATE link")?;
    fs::remove_dir(watched.host("src/sub"))?;
    fs::rename(watched.host("src/link"), watched.host("src/moved"))?;
    watched.wait_in("/tmp/inotify.log", "DELETE,ISDIR sub")?;
    watched.wait_in("/tmp/inotify.log", "DELETE link")?;
    watched.wait_in("/tmp/inotify.log", "CREATE moved")?;
    let now = fs::metadata(&file)?;
    ensure!(
        (now.ctime_nsec(), now.mtime_nsec()) == (changed, modified),
        "the file is not as the host has left it"
    );
    fs::remove_file(&file)?;
    let told = watched.wait_in("/tmp/inotify.log", "DELETE new")?;
    ensure!(
        told.iter().filter(|line| *line == "CREATE own").count() == 1,
        "{told:?}"
    );

    // No change that the program itself makes comes back.
    let heard = watched.wait_in("/tmp/watch.log", "deleted src/new")?;
    let of = |line: &str| heard.iter().filter(|one| *one == line).count();
    ensure!(of("created src/new") == 1, "{heard:?}");
    ensure!(of("attributes src/new") == 1, "{heard:?}");
    ensure!(!heard.iter().any(|line| line.contains("own")), "{heard:?}");
    // entr's file may be there.
    let left = watched.guest.sh("ls /mnt/src | grep -vx main.c")?;
    ensure!(left == "moved\nown\n", "the guest lists {left}");
    Ok(())
}

/// Ten thousand changes in a short time: each file's watcher is woken, or everything is looked at
/// again; the guest is served meanwhile, and nothing is told afterwards.
fn flood(watched: &mut Watched) -> Result<()> {
    let files = 500;
    fs::create_dir(watched.host("flood"))?;
    watched.guest.sh("ls /mnt/flood && : >/tmp/watch.log")?;
    let begun = Instant::now();
    for change in 0..10_000 {
        let path = watched.host(&format!("flood/f{}", change % files));
        File::options()
            .create(true)
            .append(true)
            .open(path)?
            .write_all(b"x")?;
    }
    eprintln!("10,000 changes of the host took {:?}", begun.elapsed());
    let seen = watched.guest.sh("ls /mnt/flood | wc -l")?;
    ensure!(seen == "500\n", "the guest sees {seen} files");
    fs::write(watched.host("flood/end"), "x")?;
    let heard = watched.wait_in("/tmp/watch.log", "created flood/end")?;
    eprintln!("the guest had heard of all after {:?}", begun.elapsed());
    let has_rescan = heard.iter().any(|line| line == "rescan");
    for file in 0..files {
        let told = |line: &String| line.ends_with(&format!(" flood/f{file}"));
        ensure!(
            has_rescan || heard.iter().any(told),
            "no word of flood/f{file}"
        );
    }
    let sizes = watched
        .guest
        .sh("cat /mnt/flood/f0 /mnt/flood/f499 | wc -c")?;
    ensure!(sizes == "40\n", "the guest reads {sizes} bytes");
    watched.wait_for_silence()
}

/// Changes are heard of after the daemon's process for this guest was killed.
fn killed_worker(watched: &mut Watched) -> Result<()> {
    watched.guest.sh(": >/tmp/watch.log")?;
    for (_, worker) in guest_processes(&watched.daemon)? {
        let worker = Pid::from_raw(worker.try_into()?).context("a process")?;
        kill_process(worker, Signal::KILL)?;
    }
    watched.wait_in("/tmp/watch.log", "rescan")?;
    watched.wake("after")
}

/// Changes are heard of after the daemon was reloaded. The waker still changes nothing: the time of
/// a file that the host has made stays.
fn reloaded(watched: &mut Watched) -> Result<()> {
    watched.guest.sh(": >/tmp/watch.log")?;
    watched.daemon.reload()?;
    watched.wait_in("/tmp/watch.log", "rescan")?;
    watched.wake("reloaded")?;
    watched.changes_nothing("src/reloaded")
}

/// The guest moves to another QEMU with other daemons while its programs watch. They go on, and the
/// waker changes nothing there either.
fn migrated(watched: &mut Watched) -> Result<()> {
    watched.guest.sh(": >/tmp/watch.log")?;
    let (daemon, tools) = daemons(watched.share.path(), watched.machine.arch())?;
    let sockets = tempfile::tempdir()?;
    let socket = sockets.path().join("incoming");
    let arriving = Options {
        incoming: Some(socket.clone()),
        ..options(watched.machine, &daemon, &tools)?
    };
    let arrived = Guest::boot(&arriving).with_context(|| daemon.log())?;
    let moved = watched.guest.migrate(&socket);
    moved.with_context(|| format!("{}\n{}", arrived.complaints(), daemon.log()))?;
    watched.guest = arrived;
    (watched.daemon, watched.tools) = (daemon, tools);
    watched.wait_in("/tmp/watch.log", "rescan")?;
    watched.wake("migrated")?;
    watched.changes_nothing("src/migrated")
}

/// The program ends soon after it was killed, though it waits for the daemon, and lets the share
/// be unmounted.
fn ended(watched: &mut Watched) -> Result<()> {
    watched
        .guest
        .sh("pkill inotifywait; pkill entr; kill -9 $(cat /tmp/pid); true")?;
    watched.guest.sh(
        "while [ -d /proc/$(cat /tmp/pid) ] && grep -q State /proc/$(cat /tmp/pid)/status && \
         ! grep -q 'State:.Z' /proc/$(cat /tmp/pid)/status; do sleep 0.1; done; \
         umount /tools/mnt && umount /mnt",
    )?;
    watched.guest.mount(TAG, "/mnt")?;
    watched.watch()?;
    fs::write(watched.host("src/again"), "x")?;
    watched.guest.sh("ls /mnt/src >/tmp/ls")?;
    fs::write(watched.host("src/heard"), "x")?;
    watched
        .wait_in("/tmp/watch.log", "created src/heard")
        .map(drop)
}
