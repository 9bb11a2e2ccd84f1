//! Chat formats. The text of a chat template enters; the format that it stands for is recognised by its
//! marks, and a conversation is spelled out by our own code. The template is a program and is never run.

use crate::error::{Error, Result};

/// A known format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "ChatML is the name of the format")]
pub(super) enum Chat {
    ChatMl,
    Llama3,
    Gemma,
    Phi3,
    /// Roles in angle brackets, each turn ended by the token for the end.
    Zephyr,
    /// `[INST] ... [/INST]`, with the system message in marks of its own where `true`.
    Inst(bool),
}

/// Most bytes of a template that are looked at.
const LONGEST: usize = 1 << 20;

impl Chat {
    /// The format of a template.
    ///
    /// # Errors
    /// `Unsupported` for a template of no known format.
    pub(super) fn recognise(template: &str) -> Result<Chat> {
        let has = |mark: &str| template.len() <= LONGEST && template.contains(mark);
        Ok(match () {
            () if has("<|im_start|>") && has("<|im_end|>") => Chat::ChatMl,
            () if has("<|start_header_id|>") && has("<|eot_id|>") => Chat::Llama3,
            () if has("<start_of_turn>") && has("<end_of_turn>") => Chat::Gemma,
            () if has("<|user|>") && has("<|assistant|>") && has("<|end|>") => Chat::Phi3,
            () if has("<|user|>") && has("<|assistant|>") && has("eos_token") => Chat::Zephyr,
            () if has("[INST]") && has("[/INST]") => Chat::Inst(has("<<SYS>>")),
            () => {
                return Err(Error::unsupported("CHAT-FORMAT", "the chat format of this model is not known")
                    .limit("ChatML, Llama 2 and 3, Mistral, Gemma, Phi-3, Zephyr")
                    .hint("leave out --chat and spell the conversation out in --prompt"));
            }
        })
    }

    /// A conversation of a system message, where there is one, and one question, up to where the answer
    /// begins. `eos` is the text of the token for the end.
    pub(super) fn spell(self, system: Option<&str>, question: &str, eos: &str) -> String {
        let turns = |before: &str, between: &str, behind: &str, answer: &str| {
            let turn = |role: &str, text: &str| format!("{before}{role}{between}{text}{behind}");
            let system = system.map_or(String::new(), |s| turn("system", s));
            format!("{system}{}{answer}", turn("user", question))
        };
        match self {
            Chat::ChatMl => turns("<|im_start|>", "\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
            Chat::Llama3 => turns(
                "<|start_header_id|>",
                "<|end_header_id|>\n\n",
                "<|eot_id|>",
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            Chat::Phi3 => turns("<|", "|>\n", "<|end|>\n", "<|assistant|>\n"),
            Chat::Zephyr => turns("<|", "|>\n", &format!("{eos}\n"), "<|assistant|>\n"),
            Chat::Gemma => {
                // There is no system turn: its text stands before the question.
                let system = system.map_or(String::new(), |s| format!("{s}\n\n"));
                format!("<start_of_turn>user\n{system}{question}<end_of_turn>\n<start_of_turn>model\n")
            }
            Chat::Inst(marked) => match (system, marked) {
                (None, _) => format!("[INST] {question} [/INST]"),
                (Some(system), true) => format!("[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{question} [/INST]"),
                (Some(system), false) => format!("[INST] {system}\n\n{question} [/INST]"),
            },
        }
    }

    /// The system message that a ChatML template uses where a conversation brings none, if it is plain
    /// text in the template.
    pub(super) fn default_system(self, template: &str) -> Option<&str> {
        if self != Chat::ChatMl {
            return None;
        }
        let begin = ["<|im_start|>system\n", "<|im_start|>system\\n"];
        begin.iter().find_map(|mark| {
            let (_, rest) = template.split_once(mark)?;
            let (text, _) = rest.split_once("<|im_end|>")?;
            let plain = !text.is_empty() && !text.contains(['\'', '"', '{', '}', '+', '\\']);
            plain.then_some(text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_recognised_by_their_marks_and_never_run() {
        let smollm = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}";
        let chat = Chat::recognise(smollm).unwrap();
        assert_eq!(chat, Chat::ChatMl);
        assert_eq!(chat.default_system(smollm), Some("You are a helpful AI assistant named SmolLM"));
        assert_eq!(
            chat.spell(Some("S"), "Q", ""),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(Chat::recognise("{{ '<start_of_turn>' }}<end_of_turn>").unwrap(), Chat::Gemma);
        assert_eq!(Chat::recognise("[INST] <<SYS>> [/INST]").unwrap(), Chat::Inst(true));
        assert_eq!(Chat::recognise("[INST] [/INST]").unwrap().spell(None, "Q", ""), "[INST] Q [/INST]");
        assert_eq!(
            Chat::Llama3.spell(None, "Q", ""),
            "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        // A hostile template is text like any other.
        let hostile = "{% for i in range(10**9) %}{{ ''.__class__.__mro__ }}{% endfor %}";
        let e = Chat::recognise(hostile).unwrap_err();
        assert_eq!((e.code(), e.kind().exit_code()), ("CHAT-FORMAT", 4));
    }
}
