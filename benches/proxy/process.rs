//! Children: pinned to a core, watched through /proc, ended by their id.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};

use super::Result;

/// A child and the lines it prints.
pub(crate) struct Process {
    child: Child,
    lines: BufReader<Box<dyn Read + Send>>,
}

/// Where a child says what is listened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// Whether processes can be kept to one core.
pub(crate) fn can_pin() -> bool {
    let two = std::thread::available_parallelism().is_ok_and(|count| count.get() >= 2);
    two && Command::new("taskset")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok()
}

/// A program on one core, if that can be had.
pub(crate) fn pinned(program: &std::path::Path, core: usize) -> Command {
    if !can_pin() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// This program in another role.
pub(crate) fn role(name: &str, core: usize) -> Result<Command> {
    let mut command = pinned(&std::env::current_exe()?, core);
    command.env("OUTPACE_BENCH_ROLE", name);
    Ok(command)
}

/// Runs a role on one thread.
pub(crate) fn runtime(role: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(role)
}

impl Process {
    pub(crate) fn start(mut command: Command, output: Output) -> Result<Self> {
        let (out, err) = match output {
            Output::Stdout => (Stdio::piped(), Stdio::inherit()),
            Output::Stderr => (Stdio::null(), Stdio::piped()),
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()?;
        let source: Box<dyn Read + Send> = match (child.stdout.take(), child.stderr.take()) {
            (Some(out), _) => Box::new(out),
            (None, Some(err)) => Box::new(err),
            (None, None) => return Err("the child has no output".into()),
        };
        Ok(Self {
            child,
            lines: BufReader::new(source),
        })
    }

    /// The next line that contains `word`.
    pub(crate) fn expect_line(&mut self, word: &str) -> Result<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err(format!("the child ended before it said `{word}`").into());
            }
            if line.contains(word) {
                return Ok(line.trim().to_owned());
            }
        }
    }

    /// Time on a core so far, all threads.
    pub(crate) fn cpu_nanos(&self) -> Result<f64> {
        let mut sum = 0.0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().unwrap_or_default().parse::<f64>()?;
        }
        Ok(sum)
    }

    /// Memory in use.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
