//! The commands of the file client, as typed.

use std::ffi::OsString;

use clap::{ArgAction, Args, Subcommand};

use super::args::Owners;
use super::mode::ModeChange;
use super::time::Moment;

/// What `fs` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum FsAction {
    /// List directories and files, as `ls -l` does
    #[command(disable_help_flag = true)]
    Ls {
        /// Also names that begin with a dot
        #[arg(long, short)]
        all: bool,
        /// Sizes in KiB, MiB and so on
        #[arg(long, short = 'h')]
        human_readable: bool,
        /// The long format, which is the only one
        #[arg(short)]
        long: bool,
        #[allow(missing_docs, reason = "the help says it")]
        #[arg(long, action = ArgAction::Help, help = "Print help")]
        help: Option<bool>,
        /// What to list
        #[arg(value_name = "PATH", default_value = ".")]
        paths: Vec<OsString>,
    },
    /// Write files to standard output
    Cat {
        /// What to write
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<OsString>,
    },
    /// Copy files; a path in the share begins with a colon: cp :in/share here
    Cp(CpArgs),
    /// Make a directory like another: copy what differs by size or time
    Sync(SyncArgs),
    /// Show everything that is known of files
    Stat {
        /// Which
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<OsString>,
    },
    /// Show a directory and all below it
    Tree {
        /// Where to begin
        #[arg(value_name = "PATH", default_value = ".")]
        path: OsString,
    },
    /// Show the space that files take, with everything below directories
    Du(DuArgs),
    /// Find files by name, type, size and time
    Find(FindArgs),
    /// Write standard input to a file
    Write {
        /// Append to the file instead of replacing its contents
        #[arg(long, short)]
        append: bool,
        /// Which
        #[arg(value_name = "PATH")]
        path: OsString,
    },
    /// Make files that do not exist, and set the times of those that do
    Touch(TouchArgs),
    /// Change permissions
    Chmod {
        /// Also everything below directories
        #[arg(long, short = 'R')]
        recursive: bool,
        /// The permissions: octal, or symbolic as in u+rw,go-w
        #[arg(value_name = "MODE", allow_hyphen_values = true)]
        mode: ModeChange,
        /// Which files
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<OsString>,
    },
    /// Change owners
    Chown {
        /// Also everything below directories
        #[arg(long, short = 'R')]
        recursive: bool,
        /// User and group by number: UID, UID:GID or :GID
        #[arg(value_name = "OWNER")]
        owner: Owners,
        /// Which files
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<OsString>,
    },
    /// Show and change extended attributes
    #[command(subcommand)]
    Xattr(XattrAction),
    /// Make directories
    Mkdir {
        /// Make missing parents too; a directory that exists is no error
        #[arg(long, short)]
        parents: bool,
        /// Which
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<OsString>,
    },
    /// Remove files
    Rm {
        /// Remove directories too, with everything below them
        #[arg(long, short, visible_short_alias = 'R')]
        recursive: bool,
        /// A file that does not exist is no error
        #[arg(long, short)]
        force: bool,
        /// Which
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<OsString>,
    },
    /// Rename files and directories
    Mv {
        /// What to rename, and at the end where to; into it, if it is a directory
        #[arg(value_name = "PATH", num_args = 2.., required = true)]
        paths: Vec<OsString>,
    },
    /// Make a link
    Ln {
        /// A symbolic link, whose target need not exist
        #[arg(long, short)]
        symbolic: bool,
        /// The target of the link
        #[arg(value_name = "TARGET")]
        target: OsString,
        /// The link; inside of it, if it is a directory
        #[arg(value_name = "PATH")]
        path: OsString,
    },
    /// Show the free space of the share
    #[command(disable_help_flag = true)]
    Df {
        /// In KiB, MiB and so on
        #[arg(long, short = 'h')]
        human_readable: bool,
        #[allow(missing_docs, reason = "the help says it")]
        #[arg(long, action = ArgAction::Help, help = "Print help")]
        help: Option<bool>,
    },
    /// Read commands, from a terminal with history and completion
    Shell {
        /// End at the first command that fails
        #[arg(long, short)]
        exit_on_error: bool,
    },
}

/// `cp`.
#[derive(Clone, Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "options of the command line")]
pub struct CpArgs {
    /// Copy directories with everything below them; links and special files stay what they are
    #[arg(long, short, visible_short_alias = 'R')]
    pub recursive: bool,
    /// Keep permissions, times, extended attributes, hard links, and where permitted owners
    #[arg(long, short)]
    pub preserve: bool,
    /// As --recursive and --preserve
    #[arg(long, short)]
    pub archive: bool,
    /// Continue what an interrupted copy with --resume has left, and verify it by checksums
    #[arg(long)]
    pub resume: bool,
    /// Name each file
    #[arg(long, short)]
    pub verbose: bool,
    /// What to copy, and at the end where to; into it, if it is a directory
    #[arg(value_name = "PATH", num_args = 2.., required = true)]
    pub paths: Vec<OsString>,
}

/// `sync`.
#[derive(Clone, Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "options of the command line")]
pub struct SyncArgs {
    /// Compare the data of files of the same size, whatever their times are
    #[arg(long, short)]
    pub checksum: bool,
    /// Remove what the source does not have
    #[arg(long)]
    pub delete: bool,
    /// Show what would be done, and change nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Name each file
    #[arg(long, short)]
    pub verbose: bool,
    /// The source; a path in the share begins with a colon
    #[arg(value_name = "FROM")]
    pub from: OsString,
    /// What becomes like it
    #[arg(value_name = "TO")]
    pub to: OsString,
}

/// `du`.
#[derive(Clone, Debug, Args)]
#[command(disable_help_flag = true)]
#[allow(clippy::struct_excessive_bools, reason = "options of the command line")]
pub struct DuArgs {
    /// Only the sum of each path
    #[arg(long, short)]
    pub summarize: bool,
    /// Also files
    #[arg(long, short, conflicts_with = "summarize")]
    pub all: bool,
    /// In KiB, MiB and so on, instead of KiB
    #[arg(long, short = 'h')]
    pub human_readable: bool,
    /// The lengths of files instead of the space that they take, in bytes
    #[arg(long, short = 'b')]
    pub bytes: bool,
    #[allow(missing_docs, reason = "the help says it")]
    #[arg(long, action = ArgAction::Help, help = "Print help")]
    pub help: Option<bool>,
    /// Which
    #[arg(value_name = "PATH", default_value = ".")]
    pub paths: Vec<OsString>,
}

/// `find`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Tests, as find(1) has them; all must be true, and ! before one negates it:\n  \
    -name PATTERN      the name matches, as in '*.c'\n  \
    -iname PATTERN     likewise, whatever the case\n  \
    -path PATTERN      the path matches\n  \
    -type LETTER       f, d, l, p, s, c or b\n  \
    -size [+-]N[ckMG]  the size in blocks of 512 bytes, or the unit; + is more, - less\n  \
    -newer PATH        modified later than this file of the share\n  \
    -empty             a file or directory with nothing in it\n  \
    -mindepth N, -maxdepth N\n\
    -print0 ends each path with a NUL instead of a line's end."
)]
pub struct FindArgs {
    /// Where to begin, and then the tests
    #[arg(
        value_name = "PATH|TEST",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub words: Vec<OsString>,
}

/// `touch`.
#[derive(Clone, Debug, Args)]
pub struct TouchArgs {
    /// Only the time of access
    #[arg(short, conflicts_with = "modification")]
    pub access: bool,
    /// Only the time of modification
    #[arg(short)]
    pub modification: bool,
    /// Make no files
    #[arg(long, short = 'c')]
    pub no_create: bool,
    /// The time: @SECONDS since 1970, or YYYY-MM-DD HH:MM:SS in UTC [default: now]
    #[arg(long, short, value_name = "TIME", allow_hyphen_values = true)]
    pub date: Option<Moment>,
    /// The times of this file of the share
    #[arg(long, short, value_name = "PATH", conflicts_with = "date")]
    pub reference: Option<OsString>,
    /// Which files
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<OsString>,
}

/// `xattr`.
#[derive(Clone, Debug, Subcommand)]
pub enum XattrAction {
    /// List the names of a file's attributes
    List {
        /// Which files
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<OsString>,
    },
    /// Write the value of an attribute to standard output as it is
    Get {
        /// The attribute's name, such as user.comment
        #[arg(value_name = "NAME")]
        name: OsString,
        /// Which file
        #[arg(value_name = "PATH")]
        path: OsString,
    },
    /// Set an attribute
    Set {
        /// The attribute's name, such as user.comment
        #[arg(value_name = "NAME")]
        name: OsString,
        /// The value
        #[arg(value_name = "VALUE", allow_hyphen_values = true)]
        value: OsString,
        /// Which files
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<OsString>,
    },
    /// Remove an attribute
    Remove {
        /// The attribute's name, such as user.comment
        #[arg(value_name = "NAME")]
        name: OsString,
        /// Which files
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<OsString>,
    },
}
