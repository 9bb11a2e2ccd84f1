//! Pictures in a directory with one folder for each class: PNG and JPEG, as `[rows, channels, height,
//! width]`, f32. Only the chosen rows are decoded.
//!
//! Options: `size=HEIGHT,WIDTH` (needed unless all pictures have one size), `fit=crop|stretch` (the
//! whole shorter side and the middle of the longer, or all of both), `gray=1`, `scale=255` divides the
//! values, `mean` and `std` (one number, or one for each channel) normalise them after that,
//! `layout=nchw|nhwc`.

use super::select::Selection;
use super::{Rows, Spec, texts};
use crate::error::{Error, Result};
use crate::tensor::{SourceFile, Tensor};
use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};
use rayon::prelude::*;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Most bytes of all rows together.
const TOTAL: usize = 4 << 30;
/// Largest side of a picture, and most bytes of one while it is decoded.
const SIDE: u32 = 1 << 15;
const DECODED: u64 = 1 << 30;
/// Largest file.
const FILE: u64 = 256 << 20;

struct Form {
    size: Option<(u32, u32)>,
    stretch: bool,
    channels: usize,
    scale: f32,
    mean: Vec<f32>,
    std: Vec<f32>,
    last: bool,
}

impl Form {
    fn take(spec: &Spec) -> Result<Form> {
        let wrong = |option: &str, limit: &str| {
            Error::usage("DATA-OPTION", "option cannot be read")
                .field(format!("{spec} option {option}"))
                .limit(limit)
        };
        let size = match spec.list::<u32>("size")?.as_deref() {
            None => None,
            Some([side]) => Some((*side, *side)),
            Some([height, width]) => Some((*height, *width)),
            Some(_) => return Err(wrong("size", "HEIGHT,WIDTH")),
        };
        if size.is_some_and(|(h, w)| h == 0 || w == 0 || h > SIDE || w > SIDE) {
            return Err(wrong("size", "1 to 32768"));
        }
        let stretch = match spec.option::<String>("fit")?.as_deref() {
            None | Some("crop") => false,
            Some("stretch") => true,
            Some(_) => return Err(wrong("fit", "crop, stretch")),
        };
        let last = match spec.option::<String>("layout")?.as_deref() {
            None | Some("nchw") => false,
            Some("nhwc") => true,
            Some(_) => return Err(wrong("layout", "nchw, nhwc")),
        };
        let channels = if spec.option::<u8>("gray")?.unwrap_or(0) != 0 { 1 } else { 3 };
        let each = |name: &str, default: f32| -> Result<Vec<f32>> {
            let list = spec.list::<f32>(name)?.unwrap_or_else(|| vec![default]);
            match list.len() {
                1 => Ok(vec![list[0]; channels]),
                n if n == channels => Ok(list),
                _ => Err(wrong(name, "one number, or one for each channel")),
            }
        };
        let (mean, std) = (each("mean", 0.0)?, each("std", 1.0)?);
        let scale: f32 = spec.option("scale")?.unwrap_or(255.0);
        if scale == 0.0 || std.contains(&0.0) {
            return Err(wrong("scale and std", "other than 0"));
        }
        Ok(Form { size, stretch, channels, scale, mean, std, last })
    }

    /// The values of one picture and its size.
    fn read(&self, path: &Path) -> Result<(Vec<f32>, (u32, u32))> {
        let mut picture = decode(path)?;
        if let Some((height, width)) = self.size
            && (picture.height(), picture.width()) != (height, width)
        {
            picture = match self.stretch {
                true => picture.resize_exact(width, height, FilterType::Triangle),
                false => picture.resize_to_fill(width, height, FilterType::Triangle),
            };
        }
        let (height, width) = (picture.height(), picture.width());
        let bytes =
            if self.channels == 1 { picture.to_luma8().into_raw() } else { picture.to_rgb8().into_raw() };
        let value = |v: u8, c: usize| (f32::from(v) / self.scale - self.mean[c]) / self.std[c];
        let pixels = (height * width) as usize;
        let mut out = vec![0f32; bytes.len()];
        for (i, v) in bytes.into_iter().enumerate() {
            let (pixel, channel) = (i / self.channels, i % self.channels);
            let at = if self.last { i } else { channel * pixels + pixel };
            out[at] = value(v, channel);
        }
        Ok((out, (height, width)))
    }
}

fn decode(path: &Path) -> Result<DynamicImage> {
    let file = SourceFile::open(path)?;
    if file.len() > FILE {
        return Err(Error::limit_exceeded("DATA-IMAGE", "the picture's file is too large")
            .file(path)
            .found(file.len())
            .limit(FILE));
    }
    let mut bytes = vec![0; file.len() as usize];
    file.read_exact_at(0, &mut bytes)?;
    let broken = |e: &dyn std::fmt::Display| {
        Error::invalid("DATA-IMAGE", format!("the picture cannot be read: {e}"))
            .file(path)
            .hint("PNG and JPEG are read")
    };
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| broken(&e))?;
    let mut limits = image::Limits::default();
    (limits.max_image_width, limits.max_image_height, limits.max_alloc) =
        (Some(SIDE), Some(SIDE), Some(DECODED));
    reader.limits(limits);
    reader.decode().map_err(|e| match e {
        image::ImageError::Limits(_) => {
            Error::limit_exceeded("DATA-IMAGE", format!("the picture is too large: {e}")).file(path)
        }
        image::ImageError::Unsupported(_) => {
            Error::unsupported("DATA-IMAGE", format!("the picture is of another kind: {e}"))
                .file(path)
                .limit("PNG, JPEG")
        }
        e => broken(&e),
    })
}

pub(super) fn read(spec: &Spec, selection: &Selection) -> Result<Rows> {
    let form = Form::take(spec)?;
    spec.finish()?;
    let root = spec.path();
    let mut files: Vec<PathBuf> = texts::below(&root, None)?;
    let before = files.len();
    files.retain(|p| {
        let ending = p.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        matches!(ending.as_str(), "png" | "jpg" | "jpeg")
    });
    let mut notes = Vec::new();
    if files.len() < before {
        notes.push(format!("{} files are no PNG or JPEG pictures", before - files.len()));
    }
    let folders: Vec<String> = files
        .iter()
        .filter_map(|p| {
            let below = p.strip_prefix(&root).ok().filter(|b| b.components().count() > 1)?;
            Some(below.components().next()?.as_os_str().to_string_lossy().into_owned())
        })
        .collect();
    // Pictures without a folder make data without labels.
    let (mut labels, mut classes) = (Vec::new(), Vec::new());
    if folders.len() == files.len() {
        let names: std::collections::BTreeSet<&String> = folders.iter().collect();
        classes = names.into_iter().cloned().collect();
        labels = folders.iter().filter_map(|f| classes.iter().position(|c| c == f)).collect();
    }
    if let Some(chosen) = selection.apply(files.len(), &labels)? {
        files = chosen.iter().map(|i| files[*i].clone()).collect();
        if !labels.is_empty() {
            labels = chosen.iter().map(|i| labels[*i]).collect();
        }
    }
    let Some(first) = files.first() else {
        return Err(Error::invalid("DATA-EMPTY", "the directory holds no PNG or JPEG pictures").file(&root));
    };
    let (values, (height, width)) = form.read(first)?;
    let item = values.len();
    if item.saturating_mul(4).saturating_mul(files.len()) > TOTAL {
        return Err(Error::limit_exceeded("DATA-SIZE", "the pictures are too large together")
            .file(&root)
            .found(format!("{} pictures of {} bytes", files.len(), item * 4))
            .limit(format!("{TOTAL} bytes"))
            .hint("use fewer with #FROM..TO, or smaller ones with ?size=HEIGHT,WIDTH"));
    }
    let mut input = vec![0f32; item * files.len()];
    input.par_chunks_mut(item).zip(&files).try_for_each(|(place, path)| {
        let (values, size) = form.read(path)?;
        if size != (height, width) {
            return Err(Error::invalid("DATA-IMAGE", "the pictures have different sizes")
                .file(path)
                .found(format!("{} x {}", size.0, size.1))
                .limit(format!("{height} x {width}"))
                .hint("state one with ?size=HEIGHT,WIDTH"));
        }
        place.copy_from_slice(&values);
        Ok(())
    })?;
    let (height, width) = (height as usize, width as usize);
    let shape = match form.last {
        true => vec![files.len(), height, width, form.channels],
        false => vec![files.len(), form.channels, height, width],
    };
    Ok(Rows { input: Tensor::from_vec(shape, input)?, labels, classes, notes })
}
