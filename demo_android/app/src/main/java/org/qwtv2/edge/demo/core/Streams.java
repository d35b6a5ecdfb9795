package org.qwtv2.edge.demo.core;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** Whole files. */
public final class Streams {
    private static final int PIECE = 1 << 16;

    private Streams() {}

    /** Everything up to the end of a stream, which stays open. */
    public static byte[] readAll(InputStream stream) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        byte[] piece = new byte[PIECE];
        for (int n = stream.read(piece); n >= 0; n = stream.read(piece)) {
            out.write(piece, 0, n);
        }
        return out.toByteArray();
    }

    /** The content of a file. */
    public static byte[] readFile(File file) throws IOException {
        try (FileInputStream stream = new FileInputStream(file)) {
            return readAll(stream);
        }
    }

    /** Writes a file whole or not at all: under a temporary name first, forced to the disk, then renamed. */
    public static void writeAtomic(File file, byte[] data) throws IOException {
        File temporary = new File(file.getParentFile(), file.getName() + ".part");
        try (FileOutputStream out = new FileOutputStream(temporary)) {
            out.write(data);
            out.getFD().sync();
        }
        Files.move(temporary.toPath(), file.toPath(), StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
    }

    /** SHA-256 in lower-case hexadecimal digits. */
    public static String sha256(byte[] data) {
        try {
            StringBuilder text = new StringBuilder();
            for (byte b : MessageDigest.getInstance("SHA-256").digest(data)) {
                text.append(Character.forDigit((b >> 4) & 15, 16)).append(Character.forDigit(b & 15, 16));
            }
            return text.toString();
        } catch (NoSuchAlgorithmException error) {
            throw new AssertionError(error); // every Java and every Android has it
        }
    }
}
