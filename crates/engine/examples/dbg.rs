use llama_cpp_2::{
    context::params::LlamaContextParams,
    llama_backend::LlamaBackend,
    llama_batch::LlamaBatch,
    model::{LlamaModel, params::LlamaModelParams},
    token::LlamaToken,
};
use std::num::NonZeroU32;
fn main() {
    let b = LlamaBackend::init().unwrap();
    let path = std::env::args().nth(1).unwrap();
    let threads: i32 = std::env::args().nth(2).unwrap().parse().unwrap();
    let m = LlamaModel::load_from_file(&b, &path, &LlamaModelParams::default()).unwrap();
    let p = std::env::args().nth(3).map(|a| a.replace("\\n", "\n"));
    let p = p.as_deref().unwrap_or("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n");
    let toks = m.vocab().tokenize(p.as_bytes(), false, true);
    println!("{:?}", toks.iter().map(|t| t.0).collect::<Vec<_>>());
    for unified in [false] {
        for fa in [0, -1] {
            let mut c = m
                .new_context(
                    &b,
                    LlamaContextParams::default()
                        .with_n_ctx(NonZeroU32::new(512))
                        .with_n_threads(threads)
                        .with_n_threads_batch(threads)
                        .with_kv_unified(unified)
                        .with_flash_attention_policy(fa),
                )
                .unwrap();
            let mut batch = LlamaBatch::new(512, 1);
            batch.add_sequence(&toks, 0, false).unwrap();
            c.decode(&mut batch).unwrap();
            let mut pos = toks.len() as i32;
            let mut i = batch.n_tokens() - 1;
            let mut out = vec![];
            for _ in 0..16 {
                let l = c.get_logits_ith(i);
                let t = (0..l.len()).max_by(|&a, &b| l[a].total_cmp(&l[b])).unwrap();
                out.extend(m.vocab().token_to_piece(LlamaToken(t as i32), true, None));
                batch.clear();
                batch.add(LlamaToken(t as i32), pos, &[0], true).unwrap();
                pos += 1;
                i = 0;
                c.decode(&mut batch).unwrap();
            }
            println!("unified {unified} fa {fa}: {}", String::from_utf8_lossy(&out).replace('\n', "\\n"));
        }
    }
}
