//! The frontend's driver, file client and device model against released daemons: gangplankd and
//! virtiofsd.

mod device_model;
mod driver;
mod file_client;
mod fixture;
