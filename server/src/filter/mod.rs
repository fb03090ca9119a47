//! Which records of a topic a group wants: `*`, tags (`a || b`), or SQL92 on properties.
//!
//! Compiled once, evaluated on the record table alone: no body is looked at.
//!
//! Invariants  F1  No text makes the parser panic, nest deeper than [`DEPTH_MAX`] or take more memory than a multiple
//!                 of its length.
//!             F2  A record is wanted only where the condition is true: false and unknown are not.

mod lexer;
mod parser;
mod sql;
#[cfg(test)]
mod tests;

use ringmq_format::limits::FILTER_SIZE_MAX;
use ringmq_format::record::RecordEntry;
use sql::Condition;
use std::fmt;

/// Conditions in conditions.
pub const DEPTH_MAX: usize = 64;

/// Why an expression cannot be read, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.message)
    }
}

impl std::error::Error for FilterError {}

/// A compiled expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter(Kind);

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    All,
    Tags(Vec<Box<[u8]>>),
    Sql(Condition),
}

impl Filter {
    /// Everything.
    pub const ALL: Self = Self(Kind::All);

    /// Compiles an expression. Words between `||` are tags; what has a quote, a parenthesis, an operator or a blank
    /// inside a word is SQL.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > FILTER_SIZE_MAX {
            let message = format!("the expression is longer than {FILTER_SIZE_MAX} bytes");
            return Err(FilterError { column: FILTER_SIZE_MAX + 1, message });
        }
        let inner = text.trim();
        if inner.is_empty() || inner == "*" {
            return Ok(Self::ALL);
        }
        let is_sql = inner.contains(['\'', '(', ')', '=', '<', '>']) || {
            let mut words = inner.split("||").map(str::trim);
            !inner.contains("||") && words.any(|word| word.contains(char::is_whitespace))
        };
        if is_sql {
            return parser::parse(text).map(|condition| Self(Kind::Sql(condition)));
        }
        let mut tags: Vec<Box<[u8]>> = Vec::new();
        let mut column = 1;
        for part in text.split("||") {
            let tag = part.trim();
            let at = column + part.chars().take_while(|c| c.is_whitespace()).count();
            if let Some(bad) = tag.chars().position(|c| c.is_whitespace() || c == '|' || c.is_control()) {
                let message = "a tag has no blanks and no '|'; tags are separated by '||'".to_owned();
                return Err(FilterError { column: at + bad, message });
            }
            if tag.is_empty() {
                return Err(FilterError { column: at, message: "a tag is expected".to_owned() });
            }
            tags.push(tag.as_bytes().into());
            column += part.chars().count() + 2;
        }
        tags.sort_unstable();
        tags.dedup();
        Ok(Self(Kind::Tags(tags)))
    }

    /// Nothing is left out.
    pub fn is_all(&self) -> bool {
        self.0 == Kind::All
    }

    /// Whether this record is wanted.
    pub fn matches(&self, record: &RecordEntry<'_>) -> bool {
        match &self.0 {
            Kind::All => true,
            Kind::Tags(tags) => {
                record.tag.is_some_and(|tag| tags.binary_search_by(|known| (**known).cmp(tag)).is_ok())
            }
            Kind::Sql(condition) => condition.evaluate(record) == Some(true), // F2
        }
    }
}
