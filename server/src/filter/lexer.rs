//! From text to words.

use super::FilterError;

/// A word.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A name that is no keyword, as it was written.
    Name(String),
    Keyword(Keyword),
    Text(String),
    /// Without a sign.
    Whole(u64),
    Real(f64),
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Plus,
    Minus,
    Open,
    Close,
    Comma,
    End,
}

macro_rules! keywords {
    ($($name:ident = $text:literal)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Keyword { $($name),* }

        impl Keyword {
            fn parse(word: &str) -> Option<Self> {
                [$(($text, Self::$name)),*]
                    .into_iter()
                    .find(|(text, _)| word.eq_ignore_ascii_case(text))
                    .map(|(_, keyword)| keyword)
            }
        }
    };
}

keywords! {
    Not = "NOT" And = "AND" Or = "OR" Between = "BETWEEN" Is = "IS" Null = "NULL" True = "TRUE" False = "FALSE"
    In = "IN" Contains = "CONTAINS" StartsWith = "STARTSWITH" EndsWith = "ENDSWITH"
}

/// Walks over a text.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Column of a place in the text.
    pub(super) fn column(&self, at: usize) -> usize {
        self.text.get(..at).map_or(0, |before| before.chars().count()) + 1
    }

    pub(super) fn error(&self, at: usize, message: impl Into<String>) -> FilterError {
        FilterError { column: self.column(at), message: message.into() }
    }

    /// Where the next word begins, or blanks before it.
    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// Goes back to such a place.
    pub(super) fn back_to(&mut self, place: usize) {
        self.at = place;
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn skip_blanks(&mut self) -> Result<(), FilterError> {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with("--") {
                self.at += trimmed.find(['\n', '\r']).unwrap_or(trimmed.len());
            } else if trimmed.starts_with("/*") {
                let end = trimmed.find("*/").filter(|end| *end >= 2);
                let end = end.ok_or_else(|| self.error(self.at, "this comment does not end"))?;
                self.at += end + 2;
            } else {
                return Ok(());
            }
        }
    }

    /// The next word, and where it begins.
    pub(super) fn next(&mut self) -> Result<(usize, Token), FilterError> {
        self.skip_blanks()?;
        let at = self.at;
        let rest = self.rest();
        let mut chars = rest.chars();
        let (Some(first), second) = (chars.next(), chars.next()) else { return Ok((at, Token::End)) };
        let (len, token) = match (first, second) {
            ('=', _) => (1, Token::Equal),
            ('<', Some('>')) => (2, Token::NotEqual),
            ('<', Some('=')) => (2, Token::LessOrEqual),
            ('<', _) => (1, Token::Less),
            ('>', Some('=')) => (2, Token::GreaterOrEqual),
            ('>', _) => (1, Token::Greater),
            ('+', _) => (1, Token::Plus),
            ('-', _) => (1, Token::Minus),
            ('(', _) => (1, Token::Open),
            (')', _) => (1, Token::Close),
            (',', _) => (1, Token::Comma),
            ('\'', _) => self.quoted(at, rest)?,
            ('.', Some(digit)) if digit.is_ascii_digit() => self.number(at, rest)?,
            (digit, _) if digit.is_ascii_digit() => self.number(at, rest)?,
            (letter, _) if is_name(letter) => {
                let len = rest.find(|c: char| !is_name(c) && !c.is_ascii_digit()).unwrap_or(rest.len());
                let word = &rest[..len];
                (len, Keyword::parse(word).map_or_else(|| Token::Name(word.to_owned()), Token::Keyword))
            }
            (other, _) => {
                return Err(self.error(at, format!("'{}' has no meaning here", other.escape_debug())));
            }
        };
        self.at += len;
        Ok((at, token))
    }

    fn quoted(&self, at: usize, rest: &str) -> Result<(usize, Token), FilterError> {
        let mut text = String::new();
        let mut chars = rest.char_indices().skip(1).peekable();
        while let Some((index, c)) = chars.next() {
            if c != '\'' {
                text.push(c);
            } else if chars.next_if(|next| next.1 == '\'').is_some() {
                text.push('\'');
            } else {
                return Ok((index + 1, Token::Text(text)));
            }
        }
        Err(self.error(at, "this text does not end: a quote is missing"))
    }

    fn number(&self, at: usize, rest: &str) -> Result<(usize, Token), FilterError> {
        let bytes = rest.as_bytes();
        let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let mut len = digits(0);
        let mut is_real = false;
        if bytes.get(len) == Some(&b'.') {
            is_real = true;
            len += 1 + digits(len + 1);
        }
        if matches!(bytes.get(len), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(len + 1), Some(b'+' | b'-')));
            let exponent = digits((len + 1 + sign).min(bytes.len()));
            if exponent > 0 {
                is_real = true;
                len += 1 + sign + exponent;
            }
        }
        let number = &rest[..len];
        if !is_real && matches!(bytes.get(len), Some(b'l' | b'L')) {
            len += 1;
        }
        if rest[len..].starts_with(|c: char| is_name(c) || c.is_ascii_digit() || c == '.') {
            return Err(self.error(at, "this is neither a number nor a name"));
        }
        let too_large = || self.error(at, format!("the number {number} is too large"));
        if is_real {
            let value: f64 = number.parse().map_err(|_| too_large())?;
            return if value.is_finite() { Ok((len, Token::Real(value))) } else { Err(too_large()) };
        }
        Ok((len, Token::Whole(number.parse().map_err(|_| too_large())?)))
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == '$'
}
