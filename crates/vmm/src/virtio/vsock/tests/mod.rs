mod guest;
mod misuse;
mod speaking;
mod state;
