import java.io.IOException;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.net.Socket;

/**
 * What a Java program hears of a failure, and how soon: dials HOST PORT twice, the second time at once, and prints a
 * line for each.
 */
public final class Client {
    public static void main(String[] args) {
        InetSocketAddress server = new InetSocketAddress(args[0], Integer.parseInt(args[1]));
        for (int i = 0; i < 2; i++) {
            long begun = System.nanoTime();
            String said = ask(server);
            System.out.println(said + " (" + Math.round((System.nanoTime() - begun) / 1e9) + " s)");
        }
    }

    private static String ask(InetSocketAddress server) {
        String during = "connecting";
        try (Socket socket = new Socket()) {
            socket.connect(server);
            during = "reading";
            socket.getOutputStream().write("hello\n".getBytes());
            InputStream in = socket.getInputStream();
            byte[] buffer = new byte[64];
            int total = 0;
            for (int count = in.read(buffer); count >= 0; count = in.read(buffer)) {
                total += count;
            }
            return "end of stream after " + total + " bytes";
        } catch (IOException e) {
            return e.getClass().getSimpleName() + " while " + during + ": " + e.getMessage();
        }
    }

    private Client() {}
}
