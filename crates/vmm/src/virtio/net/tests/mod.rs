mod frames;
mod guest;
mod misuse;
mod wire;
