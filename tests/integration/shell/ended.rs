//! What came back from a run, and what is said about it.

use std::fmt;
use std::path::PathBuf;

/// rt, ended; nothing of it is left.
pub struct Ended {
    pub(super) command: String,
    /// The exit code; 128 + signal if one ended rt itself.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub(super) log: PathBuf,
}

impl Ended {
    #[track_caller]
    pub fn code(&self, expected: i32) -> &Self {
        assert!(self.code == expected, "the exit code is {}, not {expected}\n{self}", self.code);
        self
    }

    /// Standard output, to the byte.
    #[track_caller]
    pub fn stdout(&self, expected: impl AsRef<[u8]>) -> &Self {
        let expected = expected.as_ref();
        let text = String::from_utf8_lossy(&expected[..expected.len().min(2000)]);
        assert!(self.stdout == expected, "standard output is not {text:?}\n{self}");
        self
    }

    /// Standard error, to the byte.
    #[track_caller]
    pub fn stderr(&self, expected: impl AsRef<[u8]>) -> &Self {
        let expected = expected.as_ref();
        let text = String::from_utf8_lossy(&expected[..expected.len().min(2000)]);
        assert!(self.stderr == expected, "standard error is not {text:?}\n{self}");
        self
    }

    /// It worked, printed these lines, and nothing to standard error.
    #[track_caller]
    pub fn says(&self, lines: &[&str]) -> &Self {
        let expected: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.code(0).stderr("").stdout(expected)
    }

    /// rt itself failed: exit code 1, nothing on standard output, one line on standard error with all these words,
    /// in whatever case.
    #[track_caller]
    pub fn fails(&self, words: &[&str]) -> &Self {
        self.fails_with(1, words)
    }

    /// Likewise with another exit code.
    #[track_caller]
    pub fn fails_with(&self, code: i32, words: &[&str]) -> &Self {
        self.code(code).stdout("");
        let text = String::from_utf8_lossy(&self.stderr);
        assert!(text.lines().count() == 1 && text.ends_with('\n'), "standard error is not one line\n{self}");
        for word in words {
            let found = text.to_lowercase().contains(&word.to_lowercase());
            assert!(found, "the error does not say {word:?}\n{self}");
        }
        assert!(!text.contains("panicked"), "rt panicked\n{self}");
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// What rt logged, this run's and earlier ones' of the bundle.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |bytes: &[u8]| {
            let head = String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
            if bytes.len() > 4000 { format!("{head}… ({} bytes)", bytes.len()) } else { head }
        };
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        write!(
            formatter,
            "$ {}\nexit code {}\n--- standard output\n{}\n--- standard error\n{}\n--- log\n{}",
            self.command,
            self.code,
            shown(&self.stdout),
            shown(&self.stderr),
            tail.join("\n")
        )
    }
}
