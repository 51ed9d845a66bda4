//! GRUB's script language: from text to a tree. Source: the GRUB manual, "Writing full configuration files directly".

use std::rc::Rc;

/// How deep blocks may be in one another.
const MAX_DEPTH: usize = 32;

/// A word, which becomes none, one or more when its variables are put in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word(pub(super) Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// Whether it was quoted, so that its value is not split at spaces.
    Variable(String, bool),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Command(Vec<Word>),
    If {
        arms: Vec<(Block, Block)>,
        otherwise: Block,
    },
    While {
        until: bool,
        condition: Block,
        body: Block,
    },
    For {
        variable: String,
        words: Vec<Word>,
        body: Block,
    },
    Function {
        name: String,
        body: Block,
    },
    /// `menuentry`, `submenu`, and whatever else has a block behind its words.
    WithBlock {
        words: Vec<Word>,
        body: Block,
    },
}

pub(super) type Block = Rc<[Node]>;

impl Word {
    /// The word itself, if there is no variable in it.
    fn plain(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }
}

/// Why a configuration cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScriptError {
    #[error("line {0}: a quote is not closed")]
    Quote(usize),
    #[error("line {line}: there is no \"{wanted}\" where it should be")]
    Missing { line: usize, wanted: &'static str },
    #[error("line {line}: \"{found}\" is out of place")]
    Stray { line: usize, found: String },
    #[error("line {0}: blocks are more than {MAX_DEPTH} deep")]
    Deep(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// And whether any of it was quoted, so that it is no keyword.
    Word(Word, bool),
    End,
}

/// Reads a whole file.
pub(super) fn parse(text: &str) -> Result<Block, ScriptError> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0 };
    let block = parser.block(&[], 0)?;
    let stray = parser.keyword().map(str::to_owned);
    match stray {
        None => Ok(block),
        Some(found) => Err(ScriptError::Stray { line: parser.line(), found }),
    }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ScriptError> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    let mut line = 1;
    let mut word = Word::default();
    let mut open = false;
    let mut quoted = false;
    let close = |word: &mut Word, open: &mut bool, quoted: &mut bool, line, tokens: &mut Vec<_>| {
        if std::mem::take(open) {
            tokens.push((line, Token::Word(std::mem::take(word), std::mem::take(quoted))));
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '\n' | ';' | '|' | '&' => {
                close(&mut word, &mut open, &mut quoted, line, &mut tokens);
                tokens.push((line, Token::End));
                line += usize::from(c == '\n');
            }
            ' ' | '\t' | '\r' => close(&mut word, &mut open, &mut quoted, line, &mut tokens),
            '#' if !open => while chars.next_if(|&c| c != '\n').is_some() {},
            '{' | '}' if !open => {
                tokens.push((line, Token::Word(Word(vec![Piece::Text(c.into())]), false)));
            }
            '\\' => match chars.next() {
                Some('\n') => line += 1,
                Some(c) => {
                    (open, quoted) = (true, true);
                    push(&mut word, c);
                }
                None => {}
            },
            '\'' => {
                (open, quoted) = (true, true);
                word.0.push(Piece::Text(String::new()));
                let start = line;
                loop {
                    match chars.next().ok_or(ScriptError::Quote(start))? {
                        '\'' => break,
                        c => {
                            line += usize::from(c == '\n');
                            push(&mut word, c);
                        }
                    }
                }
            }
            '"' => {
                (open, quoted) = (true, true);
                word.0.push(Piece::Text(String::new()));
                let start = line;
                loop {
                    match chars.next().ok_or(ScriptError::Quote(start))? {
                        '"' => break,
                        '\\' => match chars.next().ok_or(ScriptError::Quote(start))? {
                            '\n' => line += 1,
                            c @ ('$' | '"' | '\\') => push(&mut word, c),
                            c => {
                                push(&mut word, '\\');
                                push(&mut word, c);
                            }
                        },
                        '$' => variable(&mut chars, &mut word, true),
                        c => {
                            line += usize::from(c == '\n');
                            push(&mut word, c);
                        }
                    }
                }
            }
            '$' => {
                open = true;
                variable(&mut chars, &mut word, false);
            }
            c => {
                open = true;
                push(&mut word, c);
            }
        }
    }
    close(&mut word, &mut open, &mut quoted, line, &mut tokens);
    tokens.push((line, Token::End));
    Ok(tokens)
}

fn push(word: &mut Word, c: char) {
    match word.0.last_mut() {
        Some(Piece::Text(text)) => text.push(c),
        _ => word.0.push(Piece::Text(c.into())),
    }
}

fn variable(chars: &mut std::iter::Peekable<std::str::Chars>, word: &mut Word, quoted: bool) {
    let mut name = String::new();
    if chars.next_if_eq(&'{').is_some() {
        for c in chars.by_ref() {
            if c == '}' {
                break;
            }
            name.push(c);
        }
    } else if let Some(c) = chars.next_if(|c| matches!(c, '?' | '#' | '@' | '*')) {
        name.push(c);
    } else if chars.peek().is_some_and(char::is_ascii_digit) {
        while let Some(c) = chars.next_if(char::is_ascii_digit) {
            name.push(c);
        }
    } else {
        while let Some(c) = chars.next_if(|&c| c.is_ascii_alphanumeric() || c == '_') {
            name.push(c);
        }
    }
    if name.is_empty() {
        push(word, '$');
    } else {
        word.0.push(Piece::Variable(name, quoted));
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
}

const KEYWORDS: &[&str] =
    &["if", "then", "elif", "else", "fi", "while", "until", "for", "do", "done", "function", "in", "{", "}"];

impl Parser {
    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |(line, _)| *line)
    }

    fn skip_ends(&mut self) {
        while matches!(self.tokens.get(self.at), Some((_, Token::End))) {
            self.at += 1;
        }
    }

    /// The keyword here, past the ends of commands.
    fn keyword(&mut self) -> Option<&str> {
        self.skip_ends();
        match self.tokens.get(self.at) {
            Some((_, Token::Word(word, false))) => word.plain().filter(|word| KEYWORDS.contains(word)),
            _ => None,
        }
    }

    fn expect(&mut self, wanted: &'static str) -> Result<(), ScriptError> {
        if self.keyword() == Some(wanted) {
            self.at += 1;
            return Ok(());
        }
        Err(ScriptError::Missing { line: self.line(), wanted })
    }

    /// Commands up to one of `ends`, or to the end of the file.
    fn block(&mut self, ends: &[&str], depth: usize) -> Result<Block, ScriptError> {
        if depth > MAX_DEPTH {
            return Err(ScriptError::Deep(self.line()));
        }
        let mut nodes = Vec::new();
        loop {
            let keyword = self.keyword().map(str::to_owned);
            if self.at >= self.tokens.len() {
                break;
            }
            match keyword.as_deref() {
                Some(end) if ends.contains(&end) => break,
                Some("if") => nodes.push(self.condition(depth)?),
                Some(word @ ("while" | "until")) => {
                    self.at += 1;
                    let condition = self.block(&["do"], depth + 1)?;
                    nodes.push(Node::While { until: word == "until", condition, body: self.loop_body(depth)? });
                }
                Some("for") => {
                    self.at += 1;
                    let mut words = self.words();
                    if words.len() < 2 || words[1].plain() != Some("in") {
                        return Err(ScriptError::Missing { line: self.line(), wanted: "in" });
                    }
                    let variable = words[0].plain().unwrap_or_default().to_owned();
                    words.drain(..2);
                    nodes.push(Node::For { variable, words, body: self.loop_body(depth)? });
                }
                Some("function") => {
                    self.at += 1;
                    let name = self.words().first().and_then(Word::plain).unwrap_or_default().to_owned();
                    nodes.push(Node::Function { name, body: self.braces(depth)? });
                }
                Some(found) if ends.is_empty() || found != "in" => {
                    return Err(ScriptError::Stray { line: self.line(), found: found.to_owned() });
                }
                _ => {
                    let words = self.words();
                    let here = self.at;
                    if self.keyword() == Some("{") && self.at == here {
                        nodes.push(Node::WithBlock { words, body: self.braces(depth)? });
                    } else {
                        self.at = here;
                        nodes.push(Node::Command(words));
                    }
                }
            }
        }
        Ok(nodes.into())
    }

    fn condition(&mut self, depth: usize) -> Result<Node, ScriptError> {
        let mut arms = Vec::new();
        loop {
            self.at += 1; // if, elif
            let condition = self.block(&["then"], depth + 1)?;
            self.expect("then")?;
            let body = self.block(&["elif", "else", "fi"], depth + 1)?;
            arms.push((condition, body));
            if self.keyword() != Some("elif") {
                break;
            }
        }
        let mut otherwise: Block = Rc::new([]);
        if self.keyword() == Some("else") {
            self.at += 1;
            otherwise = self.block(&["fi"], depth + 1)?;
        }
        self.expect("fi")?;
        Ok(Node::If { arms, otherwise })
    }

    fn loop_body(&mut self, depth: usize) -> Result<Block, ScriptError> {
        self.expect("do")?;
        let body = self.block(&["done"], depth + 1)?;
        self.expect("done")?;
        Ok(body)
    }

    fn braces(&mut self, depth: usize) -> Result<Block, ScriptError> {
        self.expect("{")?;
        let body = self.block(&["}"], depth + 1)?;
        self.expect("}")?;
        Ok(body)
    }

    /// The words of a command, up to its end or a brace.
    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some((_, Token::Word(word, quoted))) = self.tokens.get(self.at) {
            if !quoted && matches!(word.plain(), Some("{" | "}")) {
                break;
            }
            words.push(word.clone());
            self.at += 1;
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_understood_says_where() {
        assert_eq!(parse("a\nb 'c\n"), Err(ScriptError::Quote(2)));
        assert_eq!(parse("if true; then\nx"), Err(ScriptError::Missing { line: 2, wanted: "fi" }));
        assert_eq!(parse("}\n"), Err(ScriptError::Stray { line: 1, found: "}".into() }));
        assert_eq!(parse(&"f {\n".repeat(60)), Err(ScriptError::Deep(33)));
    }

    #[test]
    fn words_keep_their_quotes() {
        let block = parse("set a='x y'\"$b\"c # no\nmenuentry \"t\" $d {\n x\n}").unwrap();
        let Node::Command(words) = &block[0] else { panic!("{block:?}") };
        let text = |t: &str| Piece::Text(t.into());
        assert_eq!(words[1].0, [text("a="), text("x y"), text(""), Piece::Variable("b".into(), true), text("c")]);
        let Node::WithBlock { words, body } = &block[1] else { panic!("{block:?}") };
        assert_eq!((words.len(), body.len()), (3, 1));
    }
}
