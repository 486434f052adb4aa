//! `mimeo disk`: disk images.

use crate::args::DiskCommand;
use crate::status::{Failure, Status};
use mimeo_backends::{DiskFormat, ImageInfo, convert_image, create_image, image_info};

/// Does what was asked for.
pub fn run(command: DiskCommand) -> Result<Status, Failure> {
    match command {
        DiskCommand::Create {
            file,
            size,
            format,
            backing,
            backing_format,
        } => {
            let format = format.unwrap_or_else(|| DiskFormat::of_name(&file));
            let backing = backing.as_deref().map(|b| (b, backing_format));
            create_image(&file, format, size, backing).map_err(Failure::usage)?;
        }
        DiskCommand::Info { file, format } => {
            let info = image_info(&file, format).map_err(Failure::usage)?;
            print!("{}", describe(&info));
        }
        DiskCommand::Convert {
            from,
            to,
            from_format,
            format,
        } => {
            let format = format.unwrap_or_else(|| DiskFormat::of_name(&to));
            convert_image((&from, from_format), (&to, format)).map_err(Failure::usage)?;
        }
    }
    Ok(Status::Done)
}

/// An image in words.
fn describe(info: &ImageInfo) -> String {
    let mut text = format!(
        "format: {}\nsize: {} bytes\non the host: {} bytes\n",
        info.format, info.size, info.allocated
    );
    if let Some((file, format)) = &info.backing {
        let format = format.as_deref().unwrap_or("format not recorded");
        text.push_str(&format!("backing file: {file} ({format})\n"));
    }
    text
}
