import java.sql.DriverManager;
import java.sql.SQLException;

/**
 * What a program that uses JDBC hears of a failure: connects to HOSTS (HOST:PORT, several with commas) twice, the
 * second time at once, and prints a line for each.
 */
public final class Jdbc {
    public static void main(String[] args) {
        for (int i = 0; i < 2; i++) {
            System.out.println(ask("jdbc:postgresql://" + args[0] + "/d?user=u&password=p&sslmode=disable"));
        }
    }

    private static String ask(String url) {
        try {
            DriverManager.getConnection(url).close();
            return "connected";
        } catch (SQLException e) {
            Throwable cause = e.getCause();
            String because = cause == null ? "" : " (" + cause.getMessage() + ")";
            return e.getMessage().split("\\. ")[0] + because;
        }
    }

    private Jdbc() {}
}
