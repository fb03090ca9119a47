//! From words to conditions.
//!
//! ```text
//! or         = and { OR and }
//! and        = not { AND not }
//! not        = NOT not | predicate
//! predicate  = operand [ comparison operand | [NOT] BETWEEN operand AND operand | [NOT] IN ( text, ... )
//!            | [NOT] CONTAINS | STARTSWITH | ENDSWITH text | IS [NOT] NULL ]
//! operand    = text | [sign] number | [sign] name | TRUE | FALSE | ( or )
//! ```

use super::lexer::{Keyword, Lexer, Token};
use super::sql::{Comparison, Condition, Match, Number, Operand};
use super::{DEPTH_MAX, FilterError};

struct Parser<'a> {
    lexer: Lexer<'a>,
    at: usize,
    token: Token,
    depth: usize,
}

/// Reads a whole condition.
pub(super) fn parse(text: &str) -> Result<Condition, FilterError> {
    let mut parser = Parser { lexer: Lexer::new(text), at: 0, token: Token::End, depth: 0 };
    parser.advance()?;
    let condition = parser.any()?;
    match parser.token {
        Token::End => Ok(condition),
        _ => parser.fail("the condition ends here, and something follows it"),
    }
}

impl Parser<'_> {
    fn advance(&mut self) -> Result<(usize, Token), FilterError> {
        let (at, token) = self.lexer.next()?;
        let before = (self.at, std::mem::replace(&mut self.token, token));
        self.at = at;
        Ok(before)
    }

    fn fail<T>(&self, message: &str) -> Result<T, FilterError> {
        Err(self.lexer.error(self.at, message))
    }

    fn takes(&mut self, token: &Token) -> Result<bool, FilterError> {
        let found = self.token == *token;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn takes_keyword(&mut self, keyword: Keyword) -> Result<bool, FilterError> {
        self.takes(&Token::Keyword(keyword))
    }

    fn demand(&mut self, token: &Token, message: &str) -> Result<(), FilterError> {
        if self.takes(token)? { Ok(()) } else { self.fail(message) }
    }

    fn deeper<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<T, FilterError>,
    ) -> Result<T, FilterError> {
        if self.depth == DEPTH_MAX {
            return self.fail("the condition is nested too deeply"); // F1
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn any(&mut self) -> Result<Condition, FilterError> {
        let mut list = vec![self.all()?];
        while self.takes_keyword(Keyword::Or)? {
            list.push(self.all()?);
        }
        Ok(if list.len() == 1 { list.remove(0) } else { Condition::Any(list) })
    }

    fn all(&mut self) -> Result<Condition, FilterError> {
        let mut list = vec![self.not()?];
        while self.takes_keyword(Keyword::And)? {
            list.push(self.not()?);
        }
        Ok(if list.len() == 1 { list.remove(0) } else { Condition::All(list) })
    }

    fn not(&mut self) -> Result<Condition, FilterError> {
        if self.takes_keyword(Keyword::Not)? {
            let inner = self.deeper(Self::not)?;
            return Ok(Condition::Not(Box::new(inner)));
        }
        self.predicate()
    }

    fn predicate(&mut self) -> Result<Condition, FilterError> {
        let start = self.at;
        let left = self.operand()?;
        let comparison = match self.token {
            Token::Equal => Comparison::Equal,
            Token::NotEqual => Comparison::NotEqual,
            Token::Less => Comparison::Less,
            Token::LessOrEqual => Comparison::LessOrEqual,
            Token::Greater => Comparison::Greater,
            Token::GreaterOrEqual => Comparison::GreaterOrEqual,
            _ => return self.special(start, left),
        };
        self.advance()?;
        let right_at = self.at;
        let right = self.operand()?;
        if !matches!(comparison, Comparison::Equal | Comparison::NotEqual) {
            self.demand_number(start, &left)?;
            self.demand_number(right_at, &right)?;
        }
        Ok(Condition::Compare(left, comparison, right))
    }

    /// Text and truth have no order.
    fn demand_number(&self, at: usize, operand: &Operand) -> Result<(), FilterError> {
        match operand {
            Operand::Text(_) | Operand::Condition(_) => {
                Err(self.lexer.error(at, "only numbers can be less or greater"))
            }
            _ => Ok(()),
        }
    }

    fn special(&mut self, start: usize, left: Operand) -> Result<Condition, FilterError> {
        if self.takes_keyword(Keyword::Is)? {
            let negative = self.takes_keyword(Keyword::Not)?;
            self.demand(&Token::Keyword(Keyword::Null), "NULL is expected")?;
            let name = self.name_of(start, left)?;
            return Ok(negated(negative, Condition::IsNull(name)));
        }
        let negative = self.takes_keyword(Keyword::Not)?;
        let Token::Keyword(keyword) = self.token else {
            return if negative { self.fail(AFTER_NOT) } else { self.condition_of(start, left) };
        };
        let how = match keyword {
            Keyword::Between => {
                self.advance()?;
                let low_at = self.at;
                let low = self.operand()?;
                self.demand(&Token::Keyword(Keyword::And), "AND is expected: BETWEEN a AND b")?;
                let high_at = self.at;
                let high = self.operand()?;
                for (at, operand) in [(start, &left), (low_at, &low), (high_at, &high)] {
                    self.demand_number(at, operand)?;
                }
                return Ok(negated(negative, Condition::Between(left, low, high)));
            }
            Keyword::In => {
                self.advance()?;
                self.demand(&Token::Open, "'(' is expected")?;
                let mut list = vec![self.text()?];
                while self.takes(&Token::Comma)? {
                    list.push(self.text()?);
                }
                self.demand(&Token::Close, "',' or ')' is expected")?;
                let name = self.name_of(start, left)?;
                return Ok(negated(negative, Condition::In(name, list)));
            }
            Keyword::Contains => Match::Contains,
            Keyword::StartsWith => Match::StartsWith,
            Keyword::EndsWith => Match::EndsWith,
            _ if negative => return self.fail(AFTER_NOT),
            _ => return self.condition_of(start, left),
        };
        self.advance()?;
        let text = self.text()?;
        let name = self.name_of(start, left)?;
        Ok(negated(negative, Condition::Matches(name, how, text)))
    }

    fn name_of(&self, at: usize, operand: Operand) -> Result<Box<[u8]>, FilterError> {
        match operand {
            Operand::Property(name) => Ok(name),
            _ => Err(self.lexer.error(at, "the name of a property is expected here")),
        }
    }

    fn condition_of(&self, at: usize, operand: Operand) -> Result<Condition, FilterError> {
        match operand {
            Operand::Property(name) => Ok(Condition::Property(name)),
            Operand::Condition(condition) => Ok(*condition),
            _ => Err(self.lexer.error(at, "this is a value, and a condition is expected")),
        }
    }

    fn text(&mut self) -> Result<Box<[u8]>, FilterError> {
        if !matches!(self.token, Token::Text(_)) {
            return self.fail("a text in single quotes is expected");
        }
        match self.advance()?.1 {
            Token::Text(text) => Ok(text.into_bytes().into()),
            _ => self.fail("a text in single quotes is expected"),
        }
    }

    fn operand(&mut self) -> Result<Operand, FilterError> {
        let mut sign = None;
        while matches!(self.token, Token::Plus | Token::Minus) {
            let minus = self.advance()?.1 == Token::Minus;
            sign = Some(sign.unwrap_or(false) != minus);
        }
        let signed = |number: Number| if sign == Some(true) { number.negated() } else { number };
        if sign.is_some() && !matches!(self.token, Token::Whole(_) | Token::Real(_) | Token::Name(_)) {
            return self.fail("a number or the name of a property is expected");
        }
        let expected = "a property, a text in single quotes, a number or '(' is expected";
        match &self.token {
            Token::Name(_)
            | Token::Text(_)
            | Token::Whole(_)
            | Token::Real(_)
            | Token::Open
            | Token::Keyword(Keyword::True | Keyword::False) => {}
            Token::Keyword(Keyword::Null) => return self.fail("NULL is asked for with IS NULL"),
            Token::End => return self.fail("the expression ends too early"),
            _ => return self.fail(expected),
        }
        Ok(match self.advance()?.1 {
            Token::Name(name) => {
                let property = name.into_bytes().into();
                match sign {
                    Some(negative) => Operand::Signed { property, negative },
                    None => Operand::Property(property),
                }
            }
            Token::Text(text) => Operand::Text(text.into_bytes().into()),
            Token::Whole(whole) => Operand::Number(signed(Number::Whole(i128::from(whole)))),
            Token::Real(real) => Operand::Number(signed(Number::Real(real))),
            Token::Keyword(keyword) => {
                Operand::Condition(Box::new(Condition::Constant(keyword == Keyword::True)))
            }
            Token::Open => {
                let inner = self.deeper(Self::inside)?;
                self.demand(&Token::Close, "')' is expected")?;
                inner
            }
            _ => return self.fail(expected),
        })
    }

    /// In parentheses stands a condition, or a value: `(a) = 1`.
    fn inside(&mut self) -> Result<Operand, FilterError> {
        let value_at = self.at;
        let is_value = matches!(
            self.token,
            Token::Text(_) | Token::Whole(_) | Token::Real(_) | Token::Plus | Token::Minus
        );
        if is_value {
            let (lexer_at, token) = (self.lexer.place(), self.token.clone());
            let operand = self.operand()?;
            if self.token == Token::Close {
                return Ok(operand);
            }
            self.lexer.back_to(lexer_at);
            (self.at, self.token) = (value_at, token);
        }
        Ok(match self.any()? {
            Condition::Property(name) => Operand::Property(name),
            condition => Operand::Condition(Box::new(condition)),
        })
    }
}

const AFTER_NOT: &str = "BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH is expected";

fn negated(negative: bool, condition: Condition) -> Condition {
    if negative { Condition::Not(Box::new(condition)) } else { condition }
}
